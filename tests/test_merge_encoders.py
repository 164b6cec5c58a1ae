"""A classifier's merge: a folder of its own that answers as PEFT's merge does; and one of an encoder-decoder."""

from pathlib import Path

import pytest
import torch
from encoders import LABELS, STEPS, TAGS, build_bert, on_texts, on_words
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

MADE = {"texts": (AutoModelForSequenceClassification, LABELS), "words": (AutoModelForTokenClassification, TAGS)}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return build_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


def check_equal(merged: Path, expected) -> None:
    """Tensor by tensor what PEFT merged in float32: same names, values to one rounding of the product."""
    tensors = load_file(merged / "model.safetensors")
    wanted = expected.state_dict()
    assert tensors.keys() == wanted.keys() - expected.all_tied_weights_keys.keys()
    for key, value in tensors.items():
        torch.testing.assert_close(value, wanted[key], atol=1e-6, rtol=1e-6, msg=key)


@pytest.mark.parametrize("which", ["texts", "words"])
def test_a_merged_classifier_is_pefts_merge_with_its_head_and_labels(cli, tmp_path, bert, which):
    overrides = (on_texts if which == "texts" else on_words)(bert, tmp_path)
    run = cli(*overrides, *STEPS)
    assert run.code == 0, run.err
    merge = cli("action=merge", f"adapter={run.run_dir}", *overrides, "action.num_eval_rows=16")
    assert merge.code == 0, merge.err
    figures = merge.record()["merge"]
    assert figures["streamed"] and figures["held_out_rows"] > 0
    assert figures["max_logit_difference_from_base"] > 0 and figures["max_logit_difference"] < 1e-4
    made, labels = MADE[which]
    merged = made.from_pretrained(merge.run_dir / "merged")
    assert list(merged.config.id2label.values()) == labels
    plain = PeftModel.from_pretrained(made.from_pretrained(bert, num_labels=len(labels)), run.run_dir / "adapter")
    check_equal(merge.run_dir / "merged", plain.merge_and_unload())
    again = cli(
        "action=evaluate", *[o for o in overrides if not o.startswith("model.")],
        f"model.name_or_path={merge.run_dir / 'merged'}",
    )  # fmt: skip
    assert again.record()["metrics"] == pytest.approx(run.record()["metrics"]["after"], abs=1e-4)


def test_an_encoder_decoder_merges(cli, tmp_path, bert):
    torch.manual_seed(0)
    base, adapter = tmp_path / "t5", tmp_path / "adapter"
    config = T5Config(
        vocab_size=80, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0, pad_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(bert).save_pretrained(base)
    settings = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"], r=2, init_lora_weights=False)
    get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), settings).save_pretrained(adapter)
    model = ["model=pretrained", f"model.name_or_path={base}", "device=cpu"]
    merge = cli("action=merge", f"adapter={adapter}", "action.verify=false", "action.dtype=float32", *model)
    assert merge.code == 0, merge.err
    assert merge.record()["merge"]["streamed"]
    plain = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), adapter).merge_and_unload()
    check_equal(merge.run_dir / "merged", plain)
