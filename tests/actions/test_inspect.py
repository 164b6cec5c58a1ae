"""action=inspect: the norms are those of the products that torch builds, and nothing heavy is imported."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from cases import cases
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peftrun.artifacts import delta_weights

WEIGHTS = "adapter_model.safetensors"


def made(base, folder, config, seed=0):
    """A PEFT adapter with random factors in `folder`, and its model."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, value in model.named_parameters():
        if "lora_" in name and value.ndim > 1:
            torch.nn.init.normal_(value.data)
    model.save_pretrained(folder)
    return model


def delta_norms(model):
    """Module → ‖ΔW‖ of the weight that PEFT itself would add."""
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").double().norm().item()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def inspected(cli, adapter):
    outcome = cli("model=pretrained", "model.name_or_path=org/name", "action=inspect", f"adapter={adapter}")
    assert outcome.code == 0, outcome.err
    found = outcome.record()["inspect"]
    assert json.loads((outcome.run_dir / "inspect.json").read_text()) == found
    return found["default"], outcome


def test_a_trained_run_is_told_in_full(cli, trained):
    found, outcome = inspected(cli, trained)
    tensors = load_file(trained / "adapter" / WEIGHTS)
    noted = json.loads((trained / "adapter" / "peftrun.json").read_text())
    assert found["method"] == "LORA" and len(found["modules"]) == 14 and not found["not_measured"]
    assert found["scaling"] == [found["lora_alpha"] / found["r"]]
    assert found["parameters"] == sum(value.numel() for value in tensors.values())
    assert found["bytes"] == 4 * found["parameters"] and found["dtype"] == "float32"
    assert (
        found["provenance"]["fingerprint"] == noted["base"]["fingerprint"] and found["provenance"]["untrained"] is False
    )
    digest = hashlib.sha256((trained / "adapter" / WEIGHTS).read_bytes()).hexdigest()
    assert found["sha256"][WEIGHTS] == digest
    shown = [line for line in outcome.out.splitlines() if line.startswith("‖ΔW‖")]
    assert len(shown) == 6 and "peftrun" in outcome.out


PLAIN = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
CONFIGS = {
    "plain": PLAIN,
    "rslora": PLAIN | {"use_rslora": True},
    # The first pattern that matches decides; PEFT writes them sorted, so only a sorted order outlives saving.
    "patterns": PLAIN
    | {
        "rank_pattern": {r"layers\.1\..*": 7, "q_proj": 2},
        "alpha_pattern": {"1.mlp.down_proj": 5, "_proj": 99, "down_proj": 11},
    },
    "embedding": PLAIN | {"target_modules": ["embed_tokens", "q_proj"]},
    "kept": PLAIN | {"modules_to_save": ["norm"], "bias": "all"},
}


@pytest.mark.filterwarnings("ignore")
@cases("case", CONFIGS, every=2)
def test_norms_are_those_of_the_products_torch_builds(cli, llama, tmp_path, case):
    model = made(llama, tmp_path / "a", LoraConfig(**CONFIGS[case]))
    found, _ = inspected(cli, tmp_path / "a")
    assert {name: row["norm"] for name, row in found["modules"].items()} == pytest.approx(delta_norms(model), rel=1e-5)
    ranks = {name: layer.r["default"] for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    assert {row["rank"] for row in found["modules"].values()} == set(ranks.values())
    assert found["norm"] == pytest.approx(sum(x * x for x in delta_norms(model).values()) ** 0.5, rel=1e-5)
    assert found["provenance"] == "made elsewhere" and found["modules_to_save"] == CONFIGS[case].get("modules_to_save")


@pytest.mark.filterwarnings("ignore")
def test_overlapping_patterns_that_saving_reordered_are_named(cli, llama, tmp_path):
    patterns = {"q_proj": 2, r"layers\.1\..*": 7}
    made(llama, tmp_path / "a", LoraConfig(**PLAIN, rank_pattern=patterns))
    found, _ = inspected(cli, tmp_path / "a")
    reasons = {"model.layers.1.self_attn.q_proj": "lora_A has 2 rows, the config says rank 7"}
    assert found["not_measured"] == reasons and len(found["modules"]) == 5


def test_conv1d_projections(cli, gpt2, tmp_path):
    model = made(gpt2, tmp_path / "a", LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True))
    found, _ = inspected(cli, tmp_path / "a")
    assert {name: row["norm"] for name, row in found["modules"].items()} == pytest.approx(delta_norms(model), rel=1e-5)


@cases("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(cli, llama, tmp_path, dtype):
    made(llama, tmp_path / "a", LoraConfig(**PLAIN))
    file = tmp_path / "a" / WEIGHTS
    save_file({key: value.to(dtype) for key, value in load_file(file).items()}, file)
    tensors, (found, _) = load_file(file), inspected(cli, tmp_path / "a")
    assert found["dtype"] == str(dtype).removeprefix("torch.")
    for module, row in found["modules"].items():
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"].double() for part in "AB")
        assert row["norm"] == pytest.approx(1.5 * (b @ a).norm().item(), rel=1e-5)


def test_dora_says_what_its_norms_leave_out(cli, llama, tmp_path):
    made(llama, tmp_path / "a", LoraConfig(**PLAIN, use_dora=True))
    found, outcome = inspected(cli, tmp_path / "a")
    assert found["use_dora"] and "DoRA" in found["norm_of"] and "before DoRA's magnitudes" in outcome.out


def test_a_method_without_pairs_is_told_and_not_measured(cli, llama, tmp_path):
    made(llama, tmp_path / "a", IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    found, outcome = inspected(cli, tmp_path / "a")
    assert found["method"] == "IA3" and found["modules"] == {} and found["norm"] is None
    assert "no LoRA pairs" in found["not_measured"]["*"] and "not measured" in outcome.out


HELD = {
    "tokens": ({"trainable_token_indices": [5, 6]}, ["trained tokens [5, 6]", "token rows, 2×32, norm "]),
    "aLoRA": ({"alora_invocation_tokens": [7, 8]}, ["invoked by tokens [7, 8]"]),
    "whole modules": (
        {"modules_to_save": ["lm_head"]},
        ["fully trained modules lm_head", "lm_head.weight: trained in full, "],
    ),
    "embeddings": ({"target_modules": ["embed_tokens"]}, ["embed_tokens.base_layer.weight: embedding of the base, "]),
    "biases": ({"target_modules": ["c_attn"], "bias": "all"}, ["c_attn.base_layer.bias: bias, ", "ln_1.bias: bias, "]),
    "init": ({"init_lora_weights": "olora"}, ["takes part of the base's weights away", "init_lora_weights=olora"]),
    "niter": ({"init_lora_weights": "pissa_niter_4"}, ["cannot be loaded", "path_initial_model_for_weight_conversion"]),
}


@cases("held", HELD)
def test_everything_that_it_holds_is_shown(cli, llama, gpt2, tmp_path, held):
    settings, words = HELD[held]
    made(gpt2 if held == "biases" else llama, tmp_path / "a", LoraConfig(**PLAIN | settings))
    found, outcome = inspected(cli, tmp_path / "a")
    shown = " ".join(outcome.out.split())
    assert all(word in shown for word in words), outcome.out
    tensors = {
        key.removeprefix("base_model.model."): value for key, value in load_file(tmp_path / "a" / WEIGHTS).items()
    }
    beside = {key: value for key, value in tensors.items() if ".lora_" not in key}
    assert {name: row["norm"] for name, row in found["tensors"].items()} == pytest.approx(
        {name: value.double().norm().item() for name, value in beside.items()}
    )


def test_modules_that_cannot_be_measured_are_named(cli, llama, tmp_path):
    made(llama, tmp_path / "a", LoraConfig(**PLAIN))
    file, start = tmp_path / "a" / WEIGHTS, "base_model.model.model.layers.0."
    tensors = load_file(file)
    tensors[f"{start}self_attn.q_proj.lora_A.weight"][0, 0] = torch.nan
    del tensors[f"{start}self_attn.v_proj.lora_B.weight"]
    tensors[f"{start}mlp.down_proj.lora_A.weight"] = torch.zeros(9, 64)
    save_file(tensors, file)
    found, _ = inspected(cli, tmp_path / "a")
    assert len(found["modules"]) == 3 and len(found["not_measured"]) == 3
    assert found["not_measured"]["model.layers.0.self_attn.q_proj"] == "holds NaN or infinity"
    assert found["not_measured"]["model.layers.0.self_attn.v_proj"] == "lora_B is missing"


def test_several_adapters_each_have_their_own_entry(cli, trained):
    outcome = cli("action=inspect", f"adapter={{one: {trained}, two: {trained}}}")
    found = outcome.record()["inspect"]
    assert list(found) == ["one", "two"] and found["one"] == found["two"]


def _torn(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])


def _config(**changes):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@cases(
    "broken, words",
    [
        (_torn, "truncated"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not readable JSON"),
        (_config(r=None), "r is None"),
        (_config(lora_alpha="x"), "lora_alpha is 'x'"),
        (_config(rank_pattern={"(": 2}), "rank_pattern holds no patterns"),
    ],
)
def test_a_broken_folder_is_one_line(cli, tmp_path, trained, broken, words):
    shutil.copytree(trained / "adapter", tmp_path / "copy")
    broken(tmp_path / "copy")
    outcome = cli("action=inspect", f"adapter={tmp_path / 'copy'}")
    assert outcome.code == 1 and words in outcome.err and len(outcome.err.strip().splitlines()) == 1, outcome.err


def test_it_needs_an_adapter(cli):
    outcome = cli("action=inspect")
    assert outcome.code == 1 and "action=inspect needs one" in outcome.err


def test_a_byte_range_that_is_not_the_shape_is_refused(tmp_path, trained):
    from peftrun.errors import ArtifactError
    from peftrun.io import safetensors_header

    file = trained / "adapter" / WEIGHTS
    entry = safetensors_header.read_header(file)[0]
    for wrong in ({"shape": (1, 1)}, {"dtype": "F8_E4M3"}):
        with pytest.raises(ArtifactError, match=entry.name):
            delta_weights.read_tensor(file, type(entry)(**{**entry.__dict__, **wrong}))


HEAVY = ("torch", "transformers", "peft", "safetensors")
PROBE = f"""
import runpy, sys
sys.argv = ["peftrun", *sys.argv[1:]]
try:
    runpy.run_module("peftrun", run_name="__main__")
finally:
    print("HEAVY", [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.slow
@cases("args", [("action=inspect", "adapter={}"), ("action=diff", "adapter={{a: {0}, b: {0}}}")])
def test_nothing_heavy_is_imported(tmp_path, trained, args):
    typed = [args[0], args[1].format(trained)]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *typed], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "HEAVY []" in done.stderr and "ΔW" in done.stdout, done.stderr
