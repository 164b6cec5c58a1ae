"""action=diff: distances and overlaps are those of the products that torch builds."""

import json
import shutil

import pytest
import torch
from cases import cases
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peftrun.artifacts import adapter_tensors

WEIGHTS = "adapter_model.safetensors"
TARGETS = ["q_proj", "v_proj"]


def made(base, folder, config, seed=0):
    """A PEFT adapter with random factors in `folder`; module → ΔW as PEFT builds it."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, value in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value.data)
    model.save_pretrained(folder)
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach().double()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def compared(cli, a, b):
    outcome = cli("action=diff", f"adapter={{one: {a}, two: {b}}}")
    assert outcome.code == 0, outcome.err
    found = outcome.record()["diff"]
    assert json.loads((outcome.run_dir / "diff.json").read_text()) == found
    return found, outcome


def changed(source, target, change):
    shutil.copytree(source, target)
    save_file(
        {key: change(key, value).contiguous() for key, value in load_file(target / WEIGHTS).items()}, target / WEIGHTS
    )
    return target


def test_an_adapter_against_itself(cli, trained):
    found, outcome = compared(cli, trained, trained / "adapter")
    assert found["config"] == {} and found["same_base"] and not found["only_in_a"] and not found["only_in_b"]
    assert len(found["modules"]) == 14 and not found["not_comparable"]
    for row in [*found["modules"].values(), found["totals"]]:
        assert row["distance"] == row["relative_distance"] == 0.0 and row["norm_a"] == row["norm_b"] > 0
        assert [row[key] for key in ("cosine", "overlap_B", "overlap_A")] == pytest.approx([1.0] * 3)
    assert "settings" in outcome.out and "all 14 shared modules" in outcome.out


def test_figures_are_those_of_the_products_torch_builds(cli, llama, tmp_path):
    one = made(llama, tmp_path / "a", LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS), seed=1)
    other = made(
        llama, tmp_path / "b", LoraConfig(r=3, lora_alpha=9, target_modules=TARGETS, rank_pattern={"v_proj": 5}), seed=2
    )
    found, _ = compared(cli, tmp_path / "a", tmp_path / "b")
    assert found["modules"].keys() == one.keys()
    for module, row in found["modules"].items():
        a, b = one[module], other[module]
        product = (a * b).sum()
        expected = {
            "norm_a": a.norm(), "norm_b": b.norm(), "distance": (a - b).norm(), "cosine": product / a.norm() / b.norm(),
            "relative_distance": (a - b).norm() / max(a.norm(), b.norm()),
            "overlap_B": phi(a, b, row["ranks"]), "overlap_A": phi(a.T, b.T, row["ranks"]),
        }  # fmt: skip
        assert {key: row[key] for key in expected} == pytest.approx(
            {k: v.item() for k, v in expected.items()}, rel=1e-5
        )
    whole = torch.cat([(one[module] - other[module]).flatten() for module in one]).norm().item()
    assert found["totals"]["distance"] == pytest.approx(whole, rel=1e-5)
    assert found["config"]["r"] == [4, 3] and found["config"]["rank_pattern"] == [{}, {"v_proj": 5}]
    assert "target_modules" not in found["config"]


def phi(a, b, ranks):
    """Overlap of the leading left singular vectors of two full products."""
    u, v = (torch.linalg.svd(x)[0][:, :rank] for x, rank in zip((a, b), ranks, strict=True))
    return (u.T @ v).square().sum() / min(ranks)


def test_a_small_difference_keeps_its_digits(cli, llama, tmp_path):
    made(llama, tmp_path / "a", LoraConfig(r=4, target_modules=TARGETS))
    near = changed(
        tmp_path / "a", tmp_path / "b", lambda key, value: value * (1 + 2**-20) if "lora_B" in key else value
    )
    found, _ = compared(cli, tmp_path / "a", near)
    assert found["totals"]["relative_distance"] == pytest.approx(2**-20, rel=0.1)


def test_the_same_product_written_otherwise_is_at_no_distance(cli, llama, tmp_path):
    made(llama, tmp_path / "a", LoraConfig(r=4, target_modules=TARGETS))
    other = changed(tmp_path / "a", tmp_path / "b", lambda key, value: value * (2 if "lora_B" in key else 0.5))
    totals = compared(cli, tmp_path / "a", other)[0]["totals"]
    assert totals["distance"] < 1e-12 * totals["norm_a"] and totals["overlap_B"] == pytest.approx(1)


def test_orthogonal_and_contained_spaces(cli, llama, tmp_path):
    def rows(first, count):
        def change(key, value):
            if "lora_A" not in key:
                return value
            return torch.eye(32)[first : first + len(value)] * (torch.arange(len(value)) < count)[:, None]

        return change

    made(llama, tmp_path / "a", LoraConfig(r=4, target_modules=TARGETS))
    low, high, two = (
        changed(tmp_path / "a", tmp_path / name, rows(first, count))
        for name, first, count in (("low", 0, 4), ("high", 8, 4), ("two", 0, 2))
    )
    assert compared(cli, low, high)[0]["totals"]["overlap_A"] == pytest.approx(0, abs=1e-12)
    assert compared(cli, low, two)[0]["totals"]["overlap_A"] == pytest.approx(1)
    assert compared(cli, low, high)[0]["totals"]["cosine"] == pytest.approx(0, abs=1e-12)


def test_an_untrained_adapter_has_no_direction(cli, llama, tmp_path):
    made(llama, tmp_path / "a", LoraConfig(r=4, target_modules=TARGETS))
    zero = changed(tmp_path / "a", tmp_path / "b", lambda key, value: value * (0 if "lora_B" in key else 1))
    totals = compared(cli, tmp_path / "a", zero)[0]["totals"]
    assert totals["cosine"] is None and totals["overlap_B"] is None and totals["overlap_A"] == pytest.approx(1)
    assert totals["norm_b"] == 0 and totals["relative_distance"] == pytest.approx(1)
    assert compared(cli, zero, zero)[0]["totals"]["relative_distance"] is None


@pytest.mark.slow
def test_modules_of_one_only_and_of_other_shapes(cli, llama, gpt2, tmp_path):
    made(llama, tmp_path / "a", LoraConfig(r=2, target_modules=["q_proj", "k_proj"]))
    made(llama, tmp_path / "b", LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    found, outcome = compared(cli, tmp_path / "a", tmp_path / "b")
    assert found["only_in_a"] == [f"model.layers.{layer}.self_attn.k_proj" for layer in (0, 1)]
    assert found["only_in_b"] == [f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 1)]
    assert found["totals"]["modules"] == 2 and "only in two" not in outcome.out and "only in a" in outcome.out
    made(gpt2, tmp_path / "c", LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    found, _ = compared(cli, tmp_path / "a", tmp_path / "c")
    assert found["totals"] == {"modules": 0} and len(found["only_in_b"]) == 2 and found["same_base"] is None
    narrow = changed(tmp_path / "b", tmp_path / "d", lambda key, value: value[:, :16] if "lora_A" in key else value)
    found, _ = compared(cli, tmp_path / "b", narrow)
    assert len(found["not_comparable"]) == 4 and "32×16" in next(iter(found["not_comparable"].values()))


def test_bfloat16_against_float32(cli, llama, tmp_path):
    made(llama, tmp_path / "a", LoraConfig(r=4, target_modules=TARGETS))
    half = changed(tmp_path / "a", tmp_path / "b", lambda key, value: value.bfloat16())
    totals = compared(cli, tmp_path / "a", half)[0]["totals"]
    assert 1e-4 < totals["relative_distance"] < 1e-2 and totals["cosine"] > 0.999


def test_a_method_without_pairs_is_told_not_to_be_comparable(cli, llama, trained, tmp_path):
    made(llama, tmp_path / "ia3", IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    found, outcome = compared(cli, trained, tmp_path / "ia3")
    assert "IA3 has no LoRA pairs" in found["not_comparable"]["b: *"] and found["totals"] == {"modules": 0}
    assert found["config"]["peft_type"] == ["LORA", "IA3"] and "not comparable" in outcome.out


BESIDE = {
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "lm_head.weight"),
    "tokens": ({"trainable_token_indices": [5, 6]}, "model.embed_tokens.token_adapter.trainable_tokens_delta"),
    "dora": ({"use_dora": True}, "model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
    "lora_bias": ({"lora_bias": True}, "model.layers.0.self_attn.q_proj.lora_B.bias"),
}


@cases("kind", BESIDE)
def test_what_is_beside_the_pairs_is_compared(cli, llama, tmp_path, kind):
    settings, name = BESIDE[kind]
    made(llama, tmp_path / "a", LoraConfig(target_modules=TARGETS, **settings))
    key = next(key for key in load_file(tmp_path / "a" / WEIGHTS) if key.removeprefix("base_model.model.") == name)
    other = changed(tmp_path / "a", tmp_path / "b", lambda one, value: value + (one == key))
    found, outcome = compared(cli, tmp_path / "a", other)
    value = load_file(tmp_path / "a" / WEIGHTS)[key].double()
    row = found["tensors"][name]
    assert found["totals"]["distance"] == 0.0 and found["config"] == {}
    assert row["norm_a"] == pytest.approx(value.norm().item()) and row["norm_b"] == pytest.approx(
        (value + 1).norm().item()
    )
    assert row["distance"] == pytest.approx(value.numel() ** 0.5) == pytest.approx(found["tensor_totals"]["distance"])
    assert name in outcome.out and f"all {len(found['tensors'])} other tensors" in outcome.out


def test_biases_and_tensors_of_one_only(cli, gpt2, tmp_path):
    more = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    made(gpt2, tmp_path / "a", LoraConfig(**more, bias="all"))
    made(gpt2, tmp_path / "b", LoraConfig(**more))
    moved = changed(tmp_path / "a", tmp_path / "c", lambda key, value: value + key.endswith(".bias"))
    found, _ = compared(cli, tmp_path / "a", moved)
    assert {row["distance"] for name, row in found["tensors"].items() if name.endswith("ln_f.bias")} == {32**0.5}
    found, outcome = compared(cli, tmp_path / "a", tmp_path / "b")
    assert (
        "transformer.ln_f.bias" in found["tensors_only_in_a"]
        and not found["tensors_only_in_b"]
        and not found["tensors"]
    )
    assert "only in a" in outcome.out


@cases("setting", ["target_modules", "alora_invocation_tokens", "layer_replication"])
def test_the_order_of_a_setting_counts_unless_it_is_a_set(cli, llama, tmp_path, setting):
    values = {"target_modules": TARGETS, "alora_invocation_tokens": [7, 5], "layer_replication": [[0, 2], [1, 2]]}
    made(llama, tmp_path / "a", LoraConfig(**{"target_modules": TARGETS, setting: values[setting]}))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    file = tmp_path / "b" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {setting: config[setting][::-1]}))
    found, outcome = compared(cli, tmp_path / "a", tmp_path / "b")
    assert found["config"] == (
        {} if setting == "target_modules" else {setting: [values[setting], values[setting][::-1]]}
    ), outcome.out


def test_rows_of_other_tokens_are_not_compared(cli, llama, tmp_path):
    for name, tokens in (("a", [5, 6]), ("b", [5, 7])):
        made(llama, tmp_path / name, LoraConfig(target_modules=TARGETS, trainable_token_indices=tokens))
    found, _ = compared(cli, tmp_path / "a", tmp_path / "b")
    assert not found["tensors"] and list(found["not_comparable"].values()) == ["its rows are of other tokens"]


@pytest.mark.parametrize("piece", [7, 1 << 22])
def test_methods_without_pairs_are_compared_tensor_by_tensor(cli, llama, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(adapter_tensors, "PIECE", piece)
    config = LoHaConfig(target_modules=TARGETS, r=4)
    made(llama, tmp_path / "a", config)
    found, _ = compared(cli, tmp_path / "a", changed(tmp_path / "a", tmp_path / "b", lambda key, value: value * 2))
    whole = (
        torch.cat([value.double().flatten() for value in load_file(tmp_path / "a" / WEIGHTS).values()]).norm().item()
    )
    totals = found["tensor_totals"]
    assert (totals["norm_a"], totals["distance"], totals["cosine"]) == pytest.approx((whole, whole, 1.0))


@cases("adapter", ["", "adapter={adapter}", "adapter={{a: {adapter}, b: {adapter}, c: {adapter}}}"])
def test_it_compares_two(cli, trained, adapter):
    outcome = cli("action=diff", *([adapter.format(adapter=trained)] if adapter else []))
    line = "adapter: action=diff compares two adapters; type 'adapter={a: PATH, b: PATH}'"
    assert outcome.code == 1 and outcome.err.strip().endswith(line)


def test_a_broken_folder_is_one_line(cli, tmp_path, trained):
    shutil.copytree(trained / "adapter", tmp_path / "copy")
    (tmp_path / "copy" / WEIGHTS).write_bytes(b"nonsense")
    outcome = cli("action=diff", f"adapter={{a: {trained}, b: {tmp_path / 'copy'}}}")
    assert outcome.code == 1 and len(outcome.err.strip().splitlines()) == 1 and "adapter.b=" in outcome.err
