"""An adapter beneath another: the reference model of a preference training, and the adapter that a stack stands on."""

import json
import math
import shutil

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, cli_here, jsonl
from faults import check_refused, fill
from test_methods import FITTING, run_of

from peftrun.adapters import attach, load, parent, probes, reference, save, stack
from peftrun.artifacts.adapter_folder import resolve_adapter
from peftrun.models.base import load_base
from peftrun.models.device import Device

CPU = Device("cpu", torch.float32, "")
NO_SAMPLES = ["action.num_samples=0"]
TASKS = {"dpo": "pairs", "kto": "judged", "grpo": "asked"}
COLUMNS = {
    "dpo": ["task.chosen_column=good", "task.rejected_column=bad"],
    "kto": ["task.completion_template='{a}'", "task.desirable_column=ok"],
    "grpo": ["task.completion_template='{a}'", "task.data.label_column=null", "task.data.labels=null", "task.data.balance=false",
             "task.objective.max_completion_length=4", "task.objective.rewards=[matches_pattern]", "task.objective.pattern='^[a-m]'",
             "task.objective.reward_weights=null", "task.objective.beta=0.5"],
}  # fmt: skip


@pytest.fixture(scope="module")
def where(tmp_path_factory, llama, on_tiny):
    """A folder with rows for each objective, and the run of a first stage: `outputs/train/first`."""
    folder = tmp_path_factory.mktemp("reference")
    asked = [f"Is {n} even?" for n in range(24)]
    jsonl(folder / "pairs.jsonl", [{"q": text, "good": "yes", "bad": "no"} for text in asked])
    jsonl(
        folder / "judged.jsonl",
        [{"q": text, "a": "yes" if n % 2 else "no", "ok": bool(n % 2)} for n, text in enumerate(asked)],
    )
    jsonl(folder / "asked.jsonl", [{"q": text, "a": "yes"} for text in asked])
    run = cli_here(folder, *on_tiny(llama), *TINY_STEPS, "hydra.run.dir=outputs/train/first")
    assert run.code == 0, run.err
    return folder


def preferences(where, llama, kind, steps=4):
    return [
        "model=pretrained", f"model.name_or_path={llama}", f"task={kind}", "task.data.source=file", f"task.data.path={where}/{TASKS[kind]}.jsonl",
        "task.data.num_test_rows=8", "task.max_length=64", "task.messages_column=null", "task.prompt_template='{q}'", *COLUMNS[kind],
        "device=cpu", "device.dtype=float32", "trainer.learning_rate=1e-2", "trainer.logging_steps=1", "trainer.warmup_steps=0",
        f"trainer.max_steps={steps}", "trainer.save_steps=2",
    ]  # fmt: skip


def first_loss(run):
    return json.loads((run.run_dir / "metrics.jsonl").read_text().splitlines()[0])["loss"]


@cases("kind, chosen", [("dpo", "null"), ("dpo", "base"), ("kto", "null"), ("grpo", "null")])
def test_the_reference_is_the_adapter_as_it_was_or_the_base(where, llama, kind, chosen):
    given = preferences(where, llama, kind)
    run = cli_here(where, *given, *NO_SAMPLES, "adapter=outputs/train/first", f"task.objective.reference={chosen}")
    assert run.code == 0, run.err
    expected = "base" if chosen == "base" else "parent"
    record, stored = run.record(), json.loads((run.run_dir / "adapter/peftrun.json").read_text())
    assert record["reference"]["model"] == expected and stored["reference"] == record["reference"]
    if expected == "parent":
        assert record["reference"]["sha256"] == record["parent"]["sha256"]
    before, after = record["metrics"]["before"], record["metrics"]["after"]
    if kind == "dpo":
        assert (abs(first_loss(run) - math.log(2)) < 1e-4) == (expected == "parent")
        assert (abs(before["margin"]) < 1e-5) == (expected == "parent") and after["margin"] > before["margin"]
    if kind == "kto":
        assert (abs(before["desirable_log_ratio"]) < 1e-5) == (expected == "parent")
    folders = [
        path.name for path in run.run_dir.glob("**/*") if path.is_dir() and path.name.startswith(("ref", "frozen"))
    ]
    assert not folders, "neither checkpoints nor the adapter hold the reference"
    again = cli_here(where, *given, f"task.objective.reference={chosen}", "action=evaluate", f"adapter={run.run_dir}")
    assert again.code == 0, again.err
    assert again.record()["metrics"] == pytest.approx(after, rel=1e-4, abs=1e-6)
    if (kind, chosen) == ("dpo", "null"):
        (where / "outputs/train/first").rename(where / "elsewhere")
        gone = cli_here(where, *given, "action=evaluate", f"adapter={run.run_dir}")
        (where / "elsewhere").rename(where / "outputs/train/first")
        assert gone.code == 0 and record["reference"]["sha256"][:12] in gone.err and "base model instead" in gone.err
        assert gone.record()["reference"] == {"model": "base"}


def saved(llama, folder, *overrides):
    """A saved adapter whose every trained value was moved, as training would."""
    spec = run_of(llama, *overrides)
    base = load_base(spec.model, CPU)
    net = attach.attach_adapter(base, spec.lora, 0, attach.InitData([], 10))
    move(net)
    save.save(net, base, folder, untrained=set())
    return resolve_adapter(str(folder)), spec


def move(net):
    torch.manual_seed(1)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)


def logits(base, net):
    return probes.compute_probe_logits(net, base.tokenizer)


HELD = [
    "lora=lora", "lora=dora", "lora=ia3", "lora=loha", "lora=lora_trainable_tokens", "lora=prompt_tuning", "lora=ln_tuning",
    "lora.modules_to_save=[lm_head]", "lora.target_modules=[embed_tokens,q_proj]",
]  # fmt: skip


@cases("option", HELD)
def test_the_frozen_adapter_stays_what_it_was_while_the_other_moves(tmp_path, llama, option):
    name = option.partition("=")[2]
    ref, spec = saved(llama, tmp_path / "adapter", option, *FITTING.get(name, []))
    base = load_base(spec.model, CPU)
    plain = logits(base, base.model)
    net, _ = parent.attach_parent(base, ref, spec.lora)
    as_it_was = logits(base, net)
    trained = {name for name, value in net.named_parameters() if value.requires_grad}
    reference.add_parent(base, net, ref)
    move(net)
    with reference.use_reference(net, reference.PARENT), net.disable_adapter():
        assert torch.equal(logits(base, net), as_it_was)
    with reference.use_reference(net, reference.BASE), net.disable_adapter():
        assert torch.equal(logits(base, net), plain)
    assert not torch.equal(logits(base, net), as_it_was)
    assert {name for name, value in net.named_parameters() if value.requires_grad} == trained


STACKS = {
    "same modules": ([], ["lora.r=4"]),
    "rsLoRA on LoRA, other modules": (["lora.target_modules=[q_proj,v_proj]"], ["lora=rslora", "lora.target_modules=[down_proj,v_proj]"]),
    "ranks by pattern": (["lora.rank_pattern={q_proj: 3}", "lora.alpha_pattern={q_proj: 5}"], ["lora.layers_to_transform=[1]", "lora.target_modules=[q_proj]"]),
    "embeddings": (["lora.target_modules=[embed_tokens,q_proj]"], ["lora.target_modules=[embed_tokens]", "lora.r=2"]),
}  # fmt: skip


@cases("case", STACKS)
def test_the_sum_is_the_stack_and_the_adapter_below_is_untouched(tmp_path, llama, case):
    below, above = STACKS[case]
    ref, _ = saved(llama, tmp_path / "below", *below)
    alone = load_base(run_of(llama).model, CPU)
    below_alone = logits(alone, load.load(alone, {"default": ref}, None, False)[0])
    spec = run_of(llama, *above)
    base = load_base(spec.model, CPU)
    net, _ = stack.attach_stacked(base, ref, spec.lora, 0, False)
    assert torch.equal(logits(base, net), below_alone), "B = 0: nothing is added yet"
    names = {name for name, value in net.named_parameters() if value.requires_grad}
    assert names and all(".default." in f"{name}." for name in names)
    move(net)
    stacked = logits(base, net)
    facts = stack.add_sum(base, net)
    stack.save_stacked(net, base, ref, tmp_path / "adapter", {})
    assert facts["max_logit_difference"] < 1e-4 < (stacked - below_alone).abs().max()
    assert (tmp_path / "adapter/stack/0/adapter_model.safetensors").read_bytes() == ref.weights.read_bytes()
    fresh = load_base(spec.model, CPU)
    reloaded, (proof,) = load.load(fresh, {"default": resolve_adapter(str(tmp_path / "adapter"))}, None, False)
    assert proof.saved_difference == 0.0 and torch.allclose(logits(fresh, reloaded), stacked, atol=1e-4)


def test_a_stacked_run_lives_on_as_any_adapter(where, llama, on_tiny):
    given, below = on_tiny(llama), where / "outputs/train/first"
    before = {path: path.read_bytes() for path in (below / "adapter").iterdir()}
    run = cli_here(where, *given, *TINY_STEPS, "adapter=outputs/train/first", "stack=true", "lora.r=4")
    assert run.code == 0, run.err
    record = run.record()
    assert record["metrics"]["before"] == pytest.approx(
        json.loads((below / "record.json").read_text())["metrics"]["after"], rel=1e-4
    )
    assert record["stack"]["rank"] == 12 and record["parent"]["sha256"]
    assert {path: path.read_bytes() for path in (below / "adapter").iterdir()} == before
    named = json.loads((run.run_dir / "adapter/peftrun.json").read_text())["stack"]
    assert [part["folder"] for part in named] == ["stack/0", "stack/1"] and named[0]["sha256"] == record["parent"][
        "sha256"
    ]
    assert not list(run.run_dir.glob("checkpoints/*/*/adapter_config.json")), "checkpoints hold the new adapter alone"
    moved = where / "moved"
    shutil.copytree(run.run_dir, moved)
    merged = cli_here(where, *given, "action=merge", f"adapter={moved}")
    assert merged.code == 0 and merged.record()["merge"]["max_logit_difference"] < 1e-3, merged.err
    again = cli_here(where, *preferences(where, llama, "dpo", steps=2), *NO_SAMPLES, f"adapter={moved}", "stack=true")
    assert again.code == 0 and abs(first_loss(again) - math.log(2)) < 1e-4, again.err
    assert again.record()["reference"]["model"] == "parent" and again.record()["stack"]["rank"] == 20
    measured = cli_here(where, *preferences(where, llama, "dpo"), "action=evaluate", f"adapter={again.run_dir}")
    assert measured.record()["metrics"] == pytest.approx(again.record()["metrics"]["after"], rel=1e-4, abs=1e-6)
    part = cli_here(where, *given, "action=generate", "action.prompt=hi", f"adapter={moved}/adapter/stack/1")
    assert part.code == 1 and f"type adapter={moved}/adapter" in part.err


WRONG = {
    "a parent that is not there": ("dpo", ["task.objective.reference=parent"], ["task.objective.reference=parent: ", "type adapter=RUN_FOLDER"]),
    "no reference at all": ("grpo", ["task.objective.beta=0.0", "task.objective.reference=base"], ["task.objective.reference=base: task.objective.beta=0.0"]),
    "an adapter that cannot be held twice": ("dpo", ["adapter=WORDS"], ["adapter=WORDS: is of type TRAINABLE_", "type task.objective.reference=base"]),
    "LoRA-FA": ("dpo", ["adapter=BELOW", "lora.lora_fa=true"], ["lora.lora_fa=true: ", "type task.objective.reference=base"]),
    "nothing to stack on": ("dpo", ["stack=true"], ["action.stack=true: ", "type adapter=RUN_FOLDER"]),
    "on DoRA": ("dpo", ["stack=true", "adapter=MAGNITUDES"], ["adapter=MAGNITUDES: has use_dora=true", "action=merge"]),
    "DoRA on top": ("dpo", ["stack=true", "adapter=BELOW", "lora=dora"], ["lora.use_dora=true: cannot be added"]),
    "another method on top": ("dpo", ["stack=true", "adapter=BELOW", "lora=ia3"], ["lora.method=ia3: action.stack=true adds a LoRA to a LoRA; type lora=lora"]),
    "a start that looks at rows": (None, ["stack=true", "adapter=BELOW", "lora.init_lora_weights=eva"], ["lora.init_lora_weights=eva: "]),
    "a stack of several": ("dpo", ["stack=true", "adapter={a: BELOW, b: BELOW}"], ["adapter: ", "type adapter=PATH"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def adapters(where, llama):
    options = {"magnitudes": ["lora=dora"], "words": ["lora=trainable_tokens", *FITTING["trainable_tokens"]]}
    made = {name: saved(llama, where / name, *option)[0].path for name, option in options.items()}
    return made | {"below": where / "outputs/train/first"}


@cases("case", WRONG)
def test_what_cannot_be_is_refused_in_a_line(cli, tmp_path, where, llama, on_tiny, adapters, case):
    kind, typed, told = WRONG[case]
    args = [*(preferences(where, llama, kind) if kind else on_tiny(llama)), *fill(typed, **adapters)]
    check_refused(cli, tmp_path, args, fill(told, **adapters))
