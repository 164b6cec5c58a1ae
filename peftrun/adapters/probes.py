"""Fixed prompts on which two models are compared, and the distance between their logits."""

from inspect import signature
from typing import Any

import torch

from peftrun.compat.peft import get_base_model
from peftrun.models.device import get_input_device

PROBE_PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: what is the capital of France? Answer:",
    "¿Dónde está la biblioteca? El libro es muy bueno.",
    "def add(a, b):\n    return a + b\n",
    "URGENT! You have won a prize. Call now to claim 1000 pounds.",
)
MAX_TOKENS = 8  # per prompt: seconds of compute on a laptop, even for a base model of many billions of parameters
KEEP_COUNT = 8  # logits stored per token, and tokens of a row that are compared
# Tolerance between two computations of the same logits: units of the dtype at the largest logit, plus a share of the adapter's effect.
EPS_UNITS, EFFECT_SHARE = 8, 0.05


@torch.inference_mode()
def compute_probe_logits(model: Any, tokenizer: Any, call: list[int] | None = None) -> torch.Tensor:
    """Logits of the probes, float32, on the CPU: (tokens, vocabulary), padding and virtual tokens left out; of a sequence classifier (probes, labels).

    Args: call: see `build_probe_batch`.
    """
    ids, mask = (tensor.to(get_input_device(model)) for tensor in build_probe_batch(tokenizer, call))  # (B, T)
    was_training = model.training
    model.eval()
    logits = model(input_ids=ids, attention_mask=mask, **_decoder_inputs(model, ids)).logits  # (B, virtual + T, V)
    model.train(was_training)
    return (logits[:, -ids.shape[1] :][mask.bool()] if logits.dim() == 3 else logits).float().cpu()


def build_probe_batch(tokenizer: Any, call: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The probes' token ids and attention mask: (B, T) each. `call`: invocation tokens of an aLoRA adapter."""
    prompts = tokenizer(list(PROBE_PROMPTS), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    # aLoRA changes only the tokens that follow its invocation tokens
    rows = [[*ids, *call, *ids[:KEEP_COUNT]] if call else ids for ids in prompts]
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    return padded["input_ids"], padded["attention_mask"]


@torch.inference_mode()
def compute_row_logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits at the last tokens (at most eight) of each row of token ids: (tokens, vocabulary), float32, on the CPU."""
    model.eval()
    inner = get_base_model(model)
    # where the model supports it, logits of other tokens are not even computed
    kwargs = {"logits_to_keep": KEEP_COUNT} if "logits_to_keep" in signature(inner.forward).parameters else {}
    inputs = [torch.tensor([ids], device=get_input_device(model)) for ids in rows]  # (1, T) each: no padding
    logits = [model(input_ids=ids, **_decoder_inputs(model, ids), **kwargs).logits for ids in inputs]
    return torch.cat([(row[0, -KEEP_COUNT:] if row.dim() == 3 else row).float().cpu() for row in logits])


def _decoder_inputs(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    # an encoder-decoder gets the same text on both sides
    return {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}


def logit_tolerance(adapted: torch.Tensor, effect: float, dtype: str) -> float:
    """Largest |Δlogit| accepted between two computations of an adapter's logits in `dtype`. `effect`: max |Δlogit| from the base model."""
    return EPS_UNITS * torch.finfo(getattr(torch, dtype)).eps * adapted.abs().max().item() + EFFECT_SHARE * effect


def compare_logits(p: torch.Tensor, q: torch.Tensor) -> dict[str, float]:
    """Distance between logits (tokens, vocabulary): max |Δlogit|, mean KL(p‖q) in nats, share of tokens with the same argmax."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return {
        "max_logit_difference": (p - q).abs().max().item(),
        # max: rounding can make the divergence of equal logits slightly negative
        "kl_divergence": max(0.0, (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).float().mean().item(),
    }


def extract_top_logits(values: torch.Tensor) -> dict[str, Any]:
    """A signature of logits in a few kilobytes: the highest of each token and their indices, (tokens, KEEP_COUNT) each."""
    top = values.topk(min(KEEP_COUNT, values.shape[-1]), dim=-1)
    return {"indices": top.indices.tolist(), "values": top.values.tolist()}


def measure_distance(values: torch.Tensor, stored: dict[str, Any]) -> float | None:
    """Max |Δlogit| between logits (tokens, vocabulary) and a stored signature; None if their shapes do not match."""
    indices, expected = torch.tensor(stored["indices"]), torch.tensor(stored["values"])
    if indices.shape[0] != values.shape[0] or int(indices.max()) >= values.shape[1]:
        return None
    return (values.gather(1, indices) - expected).abs().max().item()
