"""What the libraries do without a word, and what peftrun says or does instead. Where each is tested:

| the libraries | tested in |
|---|---|
| another base of the same shapes is taken | test_facts, test_bad_artifacts |
| missing tensors only warn, unexpected ones do not | here |
| a typo in target_modules beside an entry that matches | test_facts, test_lora |
| a save over an adapter, a load under a name in use | test_facts, test_bad_artifacts |
| an adapter named a/b is saved into nested folders | test_bad_artifacts |
| after from_pretrained nothing trains | test_facts |
| the base's path on this machine is written down | actions/test_save |
| a stale config.json makes an adapter load as a full model | here |
| a pickle runs code | here, test_bad_artifacts |
| overlapping patterns change their order when saved | here |
| PiSSA's conversion drops modules trained in full | test_lora |
| a merge into adapted embeddings changes the output weights tied to them | test_merge_matrix |
| a merge that is not the adapter | here: kept as .rejected, with its figures |
| a merge into quantised weights is lost or garbled | here: refused |
| mixed batches: DoRA refuses, biases answer for the base | here, test_mixing |
| a combination drops layers, scales by √r once more | actions/test_combine |
| `_target_` runs anything | test_layers |
| trust_remote_code asks on standard input | test_model |
| two runs in one second share a folder | here |
"""

import json
import shutil

import pytest
import torch
from conftest import TINY_STEPS
from faults import check_failed
from merge_cases import FAMILIES, trained_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

WEIGHTS = "adapter_model.safetensors"
Q, K = (f"base_model.model.model.layers.0.self_attn.{name}.lora_A.weight" for name in ("q_proj", "k_proj"))


def changed(trained, folder, change):
    """The adapter with other tensors; peftrun's note beside it says nothing of its bytes."""
    shutil.copytree(trained / "adapter", folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def swapped(tensors):
    tensors[Q], tensors[K] = tensors[K].clone(), tensors[Q].clone()


TENSORS = {
    "one is missing": (lambda tensors: tensors.pop(Q), ["1 adapted tensors are not in the file", Q]),
    "one too many": (
        lambda tensors: tensors.update({Q.replace("q_", "x_"): torch.ones(2)}),
        ["1 of the file have no place"],
    ),
    "two are swapped": (swapped, ["answers otherwise than when it was saved", "restore the file"]),
}


@pytest.mark.parametrize("row", TENSORS)
def test_tensors_that_peft_takes_without_an_error_are_refused(cli, tmp_path, trained, llama, on_tiny, row):
    change, told = TENSORS[row]
    folder = changed(trained, tmp_path / "models" / "odd", change)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), str(folder))  # no error
    check_failed(cli, tmp_path, [*on_tiny(llama), "action=reload", f"adapter={folder}"], told)


def test_a_stale_config_beside_an_adapter_does_not_make_it_a_model(cli, tmp_path, trained, llama, on_tiny):
    folder = changed(trained, tmp_path / "stale", lambda tensors: None)
    shutil.copyfile(llama / "config.json", folder / "config.json")
    outcome = cli(*on_tiny(llama), "action=reload", f"adapter={folder}")
    assert outcome.code == 0 and outcome.record()["adapters"][0]["saved_difference"] == 0.0


def test_a_pickle_is_not_even_read(cli, tmp_path, trained, llama, on_tiny):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    folder = tmp_path / "pickled"
    shutil.copytree(trained / "adapter", folder)
    (folder / WEIGHTS).unlink()
    torch.save({"x": Payload()}, folder / "adapter_model.bin")
    outcome = cli(*on_tiny(llama), "action=reload", f"adapter={folder}")
    assert outcome.code == 1 and "adapter_model.bin is a pickle" in outcome.err
    assert not (tmp_path / "owned").exists()


def test_patterns_that_overlap_are_refused_since_saving_may_reorder_them(cli, tmp_path, llama, on_tiny):
    pattern = {"self_attn.q_proj": 2, "q_proj": 6}
    net = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama), LoraConfig(target_modules=["q_proj"], rank_pattern=pattern)
    )
    net.save_pretrained(tmp_path / "sorted", save_embedding_layers=False)
    assert list(json.loads((tmp_path / "sorted" / "adapter_config.json").read_text())["rank_pattern"]) == sorted(
        pattern
    )
    args = [*on_tiny(llama), *TINY_STEPS, "lora.rank_pattern={self_attn.q_proj: 2, q_proj: 6}"]
    check_failed(
        cli, tmp_path, args, ["lora.rank_pattern: self_attn.q_proj (2) and q_proj (6) both match", "do not overlap"]
    )


def test_a_merge_that_is_not_the_adapter_is_kept_as_rejected_with_its_figures(cli, tmp_path, llama, on_tiny):
    settings = {"r": 4, "target_modules": "all-linear", "lora_alpha": 40_000_000}  # beyond what float16 can hold
    adapter = trained_adapter(FAMILIES["llama"], llama, tmp_path / "large", settings)
    outcome = cli(
        *on_tiny(llama), "action=merge", f"adapter={adapter}", "action.dtype=float16", "action.num_eval_rows=3"
    )
    assert outcome.code == 1 and "is not the adapter on its base" in outcome.err
    assert not (outcome.run_dir / "merged").exists()
    assert (outcome.run_dir / "merged.rejected" / "model.safetensors").is_file()
    figures = outcome.record()["merge"]
    assert outcome.record()["status"] == "failed" and not figures["max_logit_difference"] < float("inf")
    assert "action.dtype=bfloat16" in outcome.err


def test_held_out_rows_take_part_in_the_proof(cli, trained, llama, on_tiny):
    for rows in (0, 5):
        merged = cli(*on_tiny(llama), "action=merge", f"adapter={trained}", f"action.num_eval_rows={rows}")
        assert merged.record()["merge"]["held_out_rows"] == rows


@pytest.mark.parametrize("action", ["merge", "unmerge"])
def test_a_quantised_base_is_not_merged_into(cli, tmp_path, trained, llama, on_tiny, action):
    quantised = tmp_path / "models" / "quantised"
    shutil.copytree(llama, quantised)
    settings = json.loads((quantised / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "bitsandbytes"}
    }
    (quantised / "config.json").write_text(json.dumps(settings))
    args = [*on_tiny(quantised), f"action={action}", f"adapter={trained}"]
    check_failed(cli, tmp_path, args, ["is quantized (bitsandbytes)", "full-precision model it was made from"])


def test_peft_cannot_mix_dora(llama):
    net = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama), LoraConfig(target_modules=["q_proj"], use_dora=True)
    ).eval()
    with pytest.raises(ValueError, match="when DoRA is enabled"):
        net(input_ids=torch.ones(2, 3, dtype=torch.long), adapter_names=["default", "__base__"])


def test_runs_of_one_second_have_folders_of_their_own(cli, trained, llama, on_tiny):
    folders = {cli("action=inspect", f"adapter={trained}").run_dir for _ in range(3)}
    assert len(folders) == 3
