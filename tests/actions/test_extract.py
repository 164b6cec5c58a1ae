"""action=extract: the best low-rank adapter of what full fine-tuning changed, with what it leaves out."""

import pytest
import torch
from conftest import build_llama
from faults import check_failed, check_refused
from merge_cases import FAMILIES, tensors_of, trained_adapter
from peft import PeftModel


def tuned_by_an_adapter(cli, overrides, base, family, folder, **settings):
    """A model folder that differs from the base by exactly a low-rank change."""
    adapter = trained_adapter(FAMILIES[family], base, folder, settings)
    return cli(*overrides, "action=merge", f"adapter={adapter}", "action.dtype=float32").run_dir / "merged"


def fully_tuned(base, folder, family="llama", scale=0.05):
    """A model folder in which every tensor has changed."""
    net = FAMILIES[family].auto.from_pretrained(base)
    torch.manual_seed(5)
    for parameter in net.parameters():
        parameter.data += torch.randn_like(parameter) * scale
    net.save_pretrained(folder)
    return folder


def adapted(family, base, adapter):
    return FAMILIES[family].logits(PeftModel.from_pretrained(FAMILIES[family].auto.from_pretrained(base), str(adapter)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_a_low_rank_change_is_found_again(cli, request, tmp_path, on_tiny, family, method):
    base = request.getfixturevalue(family)
    tuned = tuned_by_an_adapter(cli, on_tiny(base), base, family, tmp_path, r=3, target_modules="all-linear")
    outcome = cli(*on_tiny(base), "action=extract", f"action.finetuned_model={tuned}", f"lora={method}", "lora.r=3")
    assert outcome.code == 0, outcome.err
    figures = outcome.record()["extracted"]
    assert figures["residual"] < 1e-4 and figures["left_out"] == {}
    logits = FAMILIES[family].logits(FAMILIES[family].auto.from_pretrained(tuned))
    torch.testing.assert_close(adapted(family, base, outcome.run_dir / "adapter"), logits, rtol=0, atol=2e-3)
    again = cli(*on_tiny(base), "action=reload", f"adapter={outcome.run_dir}")
    assert again.code == 0 and again.record()["adapters"][0]["saved_difference"] == 0.0


def test_the_residual_is_the_tail_of_the_singular_values(cli, tmp_path, llama, on_tiny):
    tuned = fully_tuned(llama, tmp_path / "tuned")
    outcome = cli(
        *on_tiny(llama), "action=extract", f"action.finetuned_model={tuned}", "lora.r=5", "lora.target_modules=[q_proj]"
    )
    assert outcome.code == 0, outcome.err
    figures, before, after = outcome.record()["extracted"], tensors_of(llama), tensors_of(tuned)
    for path, residual in figures["residuals"].items():
        values = torch.linalg.svdvals(after[f"{path}.weight"] - before[f"{path}.weight"]).square()
        assert residual == pytest.approx((values[5:].sum() / values.sum()).sqrt().item(), rel=1e-3)
    squares = {key: (after[key] - before[key]).square().sum().item() for key in before}
    left_out = {key: value / sum(squares.values()) for key, value in squares.items() if "q_proj" not in key}
    assert figures["left_out"] == pytest.approx(left_out, rel=1e-4)
    assert f"{len(left_out)} changed tensors are not in the adapter" in outcome.err


def test_with_every_module_at_full_rank_nothing_is_left_out(cli, tmp_path, on_tiny):
    base = build_llama(tmp_path / "models" / "untied", tie_word_embeddings=False)
    tuned = fully_tuned(base, tmp_path / "tuned")
    outcome = cli(
        *on_tiny(base), "action=extract", f"action.finetuned_model={tuned}", "lora.r=64",
        "lora.modules_to_save=[embed_tokens,lm_head,norm,input_layernorm,post_attention_layernorm]",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    figures = outcome.record()["extracted"]
    assert figures["left_out"] == {} and figures["residual"] < 1e-5
    logits = FAMILIES["llama"].logits(FAMILIES["llama"].auto.from_pretrained(tuned))
    torch.testing.assert_close(adapted("llama", base, outcome.run_dir / "adapter"), logits, rtol=0, atol=2e-3)


def test_more_rank_leaves_less(cli, tmp_path, llama, on_tiny):
    tuned = fully_tuned(llama, tmp_path / "tuned")
    args = [*on_tiny(llama), "action=extract", f"action.finetuned_model={tuned}"]
    residuals = [cli(*args, f"lora.r={rank}").record()["extracted"]["residual"] for rank in (2, 8, 16)]
    assert residuals == sorted(residuals, reverse=True) and residuals[-1] < residuals[0]


def test_what_is_no_fine_tuned_copy_of_the_base_is_refused(cli, tmp_path, llama, gpt2, on_tiny):
    args = [*on_tiny(llama), "action=extract"]
    check_failed(
        cli,
        tmp_path,
        [*args, f"action.finetuned_model={gpt2}"],
        [f"action.finetuned_model={gpt2}: is not a fine-tuned", "choose the base"],
    )
    wider = build_llama(tmp_path / "wider", intermediate_size=96)
    check_failed(
        cli, tmp_path, [*args, f"action.finetuned_model={wider}"], ["is not a fine-tuned", "mlp.down_proj.weight"]
    )
    check_failed(
        cli, tmp_path, [*args, f"action.finetuned_model={llama}"], ["equals the base, so there is nothing to extract"]
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["action.finetuned_model=nowhere"],
            ["action.finetuned_model=nowhere: there is no such folder", "name the folder of a fine-tuned model"],
        ),
        (
            ["action.finetuned_model=pickled"],
            ["action.finetuned_model=pickled: has no .safetensors file (pickles are refused)", "convert"],
        ),
        (
            ["action.finetuned_model=TUNED", "lora=none"],
            ["lora=none: action=extract needs rank and target modules of a LoRA", "type lora=lora"],
        ),
        (
            ["action.finetuned_model=TUNED", "lora=dora"],
            ["lora.use_dora: action=extract makes a plain low-rank adapter", "type lora=lora"],
        ),
        (
            ["action.finetuned_model=TUNED", "lora=pissa"],
            ["lora.init_lora_weights: action=extract makes a plain low-rank adapter", "type lora=lora"],
        ),
        ([], ["action.finetuned_model is not set"]),
    ],
)
def test_wrong_settings_are_refused_before_the_run(cli, tmp_path, llama, on_tiny, overrides, told):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    overrides = [text.replace("TUNED", str(llama)) for text in overrides]
    check_refused(cli, tmp_path, [*on_tiny(llama), "action=extract", *overrides], told)
