"""action=unmerge: the base comes back bit for bit where the merge kept its every bit; else it is said how far off."""

import json

import peft
import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, build_llama
from faults import check_failed, check_refused
from foreign_adapters import LLAMA, made
from merge_cases import FAMILIES, stored_base, tensors_of, trained_adapter
from transformers import AutoModelForCausalLM


def undo(cli, overrides, merged, adapter, *more):
    on_merged = [item for item in overrides if not item.startswith("model.name_or_path")]
    return cli(*on_merged, "action=unmerge", f"model.name_or_path={merged}", f"adapter={adapter}", *more)


def difference(base, folder) -> float:
    before, after = tensors_of(base), tensors_of(folder)
    assert before.keys() == after.keys()
    return max((before[key].float() - after[key].float()).abs().max().item() for key in before)


def test_a_bfloat16_base_that_was_merged_into_float32_comes_back_bit_for_bit(cli, tmp_path, on_tiny):
    base = stored_base(FAMILIES["llama"], tmp_path, torch.bfloat16, shard="40KB")
    adapter = trained_adapter(FAMILIES["llama"], base, tmp_path, {"r": 4, "target_modules": "all-linear"})
    merged = cli(*on_tiny(base), "action=merge", f"adapter={adapter}", "action.dtype=float32").run_dir / "merged"
    back = undo(cli, on_tiny(base), merged, adapter)
    assert back.code == 0, back.err
    assert difference(base, back.run_dir / "base") == 0.0
    figures = back.record()["unmerge"]
    assert figures["exact"] is True and figures["max_error_bound"] == 0.0 and figures["changed"] > 4
    assert "bit for bit: the fingerprints are equal" in back.out


def test_where_rounding_lost_bits_the_error_is_reported_and_bounded(cli, trained, llama, on_tiny):
    merged = cli(*on_tiny(llama), "action=merge", f"adapter={trained}").run_dir / "merged"
    back = undo(cli, on_tiny(llama), merged, trained)
    assert back.code == 0 and "warning: the base model is not bit for bit" in back.err
    figures = back.record()["unmerge"]
    assert figures["exact"] is False
    assert 0 < difference(llama, back.run_dir / "base") <= figures["max_error_bound"] < 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_merge_rounded_further_is_off_by_more_and_within_its_bound(cli, trained, llama, on_tiny, dtype):
    merged = cli(*on_tiny(llama), "action=merge", f"adapter={trained}", f"action.dtype={dtype}").run_dir / "merged"
    back = undo(cli, on_tiny(llama), merged, trained)
    figures = back.record()["unmerge"]
    assert 1e-6 < difference(llama, back.run_dir / "base") <= figures["max_error_bound"] < 0.02
    assert AutoModelForCausalLM.from_pretrained(back.run_dir / "base", dtype="auto").dtype == torch.float32


def test_another_adapter_than_the_merged_one_is_refused(cli, tmp_path, trained, llama, on_tiny):
    merged = cli(*on_tiny(llama), "action=merge", f"adapter={trained}").run_dir / "merged"
    other = cli(*on_tiny(llama), *TINY_STEPS, "seed=7").run_dir
    overrides = [item for item in on_tiny(llama) if not item.startswith("model.name_or_path")]
    args = [*overrides, "action=unmerge", f"model.name_or_path={merged}", f"adapter={other}"]
    check_failed(cli, tmp_path, args, ["is not the adapter that was merged into", "name that one"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA gave"),
        ({"modules_to_save": ["lm_head"]}, "replaced the base model's lm_head.weight"),
    ],
)
def test_what_a_merge_replaced_cannot_be_undone(cli, tmp_path, on_tiny, settings, reason):
    base = build_llama(tmp_path / "models" / "biased", attention_bias=True)
    adapter = trained_adapter(FAMILIES["llama"], base, tmp_path, {"r": 4, "target_modules": ["q_proj"]} | settings)
    merged = cli(*on_tiny(base), "action=merge", f"adapter={adapter}").run_dir / "merged"
    overrides = [item for item in on_tiny(base) if not item.startswith("model.name_or_path")]
    args = [*overrides, "action=unmerge", f"model.name_or_path={merged}", f"adapter={adapter}"]
    check_failed(cli, tmp_path, args, ["this merge cannot be undone", reason, "keep the base"])


KEPT_NOWHERE = [
    (peft.LoraConfig(**LLAMA, bias="all"), ["replaces the base's biases", "unmerge cannot undo", "keep the base"]),
    (peft.RandLoraConfig(**LLAMA, save_projection=False), ["PEFT draws them again", "unmerge cannot", "keep the base"]),
]


@cases("config, words", KEPT_NOWHERE)
def test_what_a_file_cannot_undo_is_refused_before_the_run(cli, tmp_path, on_tiny, llama, config, words):
    made(llama, tmp_path / "a", config)
    check_refused(cli, tmp_path, [*on_tiny(llama), "action=unmerge", f"adapter={tmp_path / 'a'}"], words)


@pytest.mark.slow
def test_a_model_merged_elsewhere_is_unmerged_with_a_warning(cli, trained, llama, on_tiny):
    merged = cli(*on_tiny(llama), "action=merge", f"adapter={trained}").run_dir / "merged"
    note = json.loads((merged / "peftrun.json").read_text())
    assert note["merged"]["base"]["name"] == llama.name and note["merged"]["base_dtype"] == "float32"
    (merged / "peftrun.json").unlink()
    back = undo(cli, on_tiny(llama), merged, trained)
    assert back.code == 0 and "does not record which adapter was merged into it" in back.err
    assert difference(llama, back.run_dir / "base") < 1e-6
