"""The table of docs/quantization.md: on a CPU each quantized base model does with each action what its cell says."""

import json
from pathlib import Path

import pytest
import torch
from cases import cases
from conftest import ROOT, TINY_STEPS, build_llama, cli_here, jsonl
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peftrun.adapters import probes
from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_WEIGHTS
from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.config.schema.quantization_formats import FORMATS
from peftrun.models import base as base_models
from peftrun.models import device

pytestmark = pytest.mark.slow
pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")
FILES = "files: "
SHORT = ["action.max_new_tokens=6", "action.num_samples=0"]


def read_table():
    """Row → column → cell, without marks."""
    text = (ROOT / "docs" / "quantization.md").read_text()
    lines = [line for line in text[text.index("| base |") :].partition("\n\n")[0].splitlines() if line.startswith("| ")]
    split = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(split[0][1:], row[1:], strict=True)) for row in split[1:]}


TABLE = {
    name: cells
    for name, cells in read_table().items()
    if name in FORMATS or name in ("files: bitsandbytes", "files: torchao")
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return build_llama(tmp_path_factory.mktemp("models") / "wide", hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, wide, on_tiny):
    """Row of the table → overrides that put a run on that base model."""
    found = {name: [*on_tiny(wide), f"model.quantization={name}"] for name in FORMATS}
    for package, name in (("bitsandbytes", "nf4"), ("torchao", "torchao_int8")):
        folder = tmp_path_factory.mktemp("stored") / package
        spec = build_spec(compose.compose_run(found[name]).cfg)
        loaded = base_models.load_base(spec.model, device.resolve_device(spec.device))
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        found[f"{FILES}{package}"] = on_tiny(folder)
    return found


@pytest.fixture(scope="module")
def full(tmp_path_factory, wide, on_tiny):
    """Two adapters of the full-precision base model."""
    runs = []
    for seed in (1, 2):
        where = tmp_path_factory.mktemp(f"full{seed}")
        done = cli_here(where, *on_tiny(wide), *TINY_STEPS, f"seed={seed}")
        assert done.code == 0, done.err
        runs.append(done.run_dir)
    return runs


def check(outcome, cell):
    """Whether the command did what its cell says."""
    if cell.startswith("no: "):
        assert outcome.code == 1 and "Traceback" not in outcome.err, outcome.err
        assert cell.removeprefix("no: ").split(";")[0] in outcome.err, outcome.err
        return False
    assert outcome.code == 0, outcome.err
    return True


def weights(run):
    return load_file(run / ADAPTER / ADAPTER_WEIGHTS)


@cases("row", TABLE)
def test_each_base_does_with_each_action_what_its_cell_says(cli, tmp_path, bases, wide, full, on_tiny, row):
    base, cells, wide_rows = bases[row], TABLE[row], on_tiny(wide)
    run = cli(*base, *TINY_STEPS)
    adapters = full
    if check(run, cells["train"]):
        metrics = run.record()["metrics"]
        assert metrics["after"]["loss"] < metrics["before"]["loss"]
        adapters = [run.run_dir, cli(*base, *TINY_STEPS, "seed=2").run_dir]
        same = cli(*base, f"adapter={run.run_dir}", *TINY_STEPS, "trainer.max_steps=0")
        assert check(same, cells["train"]) and same.record()["parent"]["steps"] == 4
        assert all(value.equal(weights(run.run_dir)[key]) for key, value in weights(same.run_dir).items())
        further = cli(*base, f"adapter={run.run_dir}", *TINY_STEPS).record()["metrics"]
        assert further["before"]["loss"] == pytest.approx(metrics["after"]["loss"], rel=1e-4)
        assert further["after"]["loss"] < further["before"]["loss"]
    of_file = row.startswith(FILES) and adapters is full
    typed = [*base, *(["allow_base_mismatch=true"] if of_file else [])]
    one = f"adapter={adapters[0]}"
    again = cli(*typed, one, "action=reload")
    if check(again, cells["reload, evaluate, generate"]):
        proof = again.record()["adapters"][0]
        assert adapters is full or proof["saved_difference"] < 1e-3
        measured = cli(*typed, one, "action=evaluate").record()["metrics"]
        assert measured["loss"] == pytest.approx(again.record()["metrics"]["loss"], rel=1e-3)
    check_mixed(cli, typed, adapters, cells["rows of several adapters in a batch, serve"])
    merged = cli(*base, one, "action=merge")
    if check(merged, cells["merge"]):
        assert "full-precision base" in merged.err and merged.record()["merge"]["max_logit_difference"] < 1e-3
    else:  # into the model that was quantized, as the refusal says
        merged = cli(*wide_rows, one, "action=merge", "allow_base_mismatch=true")
        assert merged.code == 0, merged.err
    whole = AutoModelForCausalLM.from_pretrained(merged.run_dir / "merged")
    assert whole.model.layers[0].mlp.down_proj.weight.dtype == torch.float32
    export = ["action=export", "base_model=ORG/NAME", "license=mit", "output_dir=card"]
    check(cli(*typed, one, *export), cells["save, export"])


def check_mixed(cli, base, adapters, cell):
    """Rows that name two adapters, or the base model, are answered in one batch as each alone."""
    prompts = [{"prompt": text, "adapter": name} for text in ("Is 3 even?", "call now") for name in ("a", "b", "base")]
    both = f"adapter={{a: {adapters[0]}, b: {adapters[1]}}}"
    mixed = cli(*base, both, "action=generate", f"action.prompts_file={jsonl(Path('mixed.jsonl'), prompts)}", SHORT[0])
    if not check(mixed, cell):
        return
    assert "adapter by adapter" not in mixed.err
    answers = [json.loads(line) for line in (mixed.run_dir / "generations.jsonl").read_text().splitlines()]
    for name, folder in zip("ab", adapters, strict=True):
        own = jsonl(Path(f"{name}.jsonl"), [{"prompt": row["prompt"]} for row in prompts if row["adapter"] == name])
        alone = cli(*base, f"adapter={folder}", "action=generate", f"action.prompts_file={own}", SHORT[0])
        lines = [json.loads(line) for line in (alone.run_dir / "generations.jsonl").read_text().splitlines()]
        assert [row["answer"] for row in answers if row["adapter"] == name] == [row["answer"] for row in lines]


@cases("row", [row for row, cells in TABLE.items() if cells["train"] == "yes"])
def test_cells_of_a_sweep_equal_their_lone_runs(cli, bases, row):
    """Trained together where the table says so, each from an adapter of its own seed."""
    swept = cli("-m", *bases[row], *TINY_STEPS, "seed=1,2", "trainer.save_strategy=no", "hydra/launcher=shared_base")
    assert swept.code == 0, swept.err
    together = TABLE[row]["sweep"] == "yes"
    runs = sorted(Path().glob("outputs/**/adapter/adapter_model.safetensors"))
    assert len(runs) == 2
    for file in runs:
        record = json.loads((file.parent.parent / "record.json").read_text())
        assert ("joint_training" in record) is together
        lone = cli(*bases[row], *TINY_STEPS, f"seed={record['seed']}", "trainer.save_strategy=no").run_dir
        one, other = load_file(file), weights(lone)
        assert all(torch.allclose(one[key], other[key], rtol=0, atol=1e-3 * other[key].abs().max()) for key in one)


def test_what_a_device_or_a_model_cannot_do_is_refused_before_loading(cli, wide, gpt2, llama, on_tiny, full):
    """One line each, with what to type instead; of torchao, which would leave such layers as they are without a word."""
    one = f"adapter={full[0]}"
    refused = {
        "Conv1D": [*on_tiny(gpt2), *TINY_STEPS, "model.quantization=torchao_int8"],
        "does not divide the inputs": [*on_tiny(llama), one, "action=reload", "model.quantization=torchao_int4"],
        "has no gradient": [*on_tiny(wide), "action=plan", "model.quantization=torchao_int4"],
    }
    for reason, typed in refused.items():
        found = cli(*typed)
        lines = [line for line in found.err.splitlines() if line.startswith("peftrun: ")]
        assert found.code == 1 and len(lines) == 1 and "type model.quantization=nf4" in lines[0], found.err
        assert reason in lines[0], lines


def test_a_proof_on_a_base_that_rounds_inputs_has_the_tolerance_of_8_bits():
    from peftrun.adapters.load import ProbeLogits

    logits = torch.zeros(1, 2)
    assert ProbeLogits(logits, logits, "cpu float32 int8").precision == "bfloat16"
    assert ProbeLogits(logits, logits, "cpu float32 nf4").precision == "float32"
    assert probes.logit_tolerance(torch.ones(1), 0.0, "bfloat16") > probes.logit_tolerance(
        torch.ones(1), 0.0, "float32"
    )
