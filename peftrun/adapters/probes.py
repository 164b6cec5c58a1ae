"""Fixed prompts on which two models are compared, and how far apart they are."""

from inspect import signature
from typing import Any

import torch

from peftrun.models.device import get_input_device

PROBE_PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: what is the capital of France? Answer:",
    "¿Dónde está la biblioteca? El libro es muy bueno.",
    "def add(a, b):\n    return a + b\n",
    "URGENT! You have won a prize. Call now to claim 1000 pounds.",
)
MAX_TOKENS = 8  # of each; what a base of many billions computes on a laptop within seconds
KEEP_COUNT = 8
# What two computations of the same numbers may differ by: units of the dtype in the largest logit, and a share of what the adapter changes.
EPS_UNITS, EFFECT_SHARE = 8, 0.05


@torch.inference_mode()
def compute_probe_logits(model: Any, tokenizer: Any, call: list[int] | None = None) -> torch.Tensor:
    """Logits at every real token of the probes, virtual ones left out (of a text classifier, of every probe): (tokens, choices), float32, on the CPU."""
    ids, mask = (one.to(get_input_device(model)) for one in build_probe_batch(tokenizer, call))
    was_training = model.training
    model.eval()
    out = model(input_ids=ids, attention_mask=mask, **_decoder_inputs(model, ids)).logits
    model.train(was_training)
    return (out[:, -ids.shape[1] :][mask.bool()] if out.dim() == 3 else out).float().cpu()


def build_probe_batch(tokenizer: Any, call: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The probes' token ids and attention mask. `call`: token ids after which an adapter is on."""
    given = tokenizer(list(PROBE_PROMPTS), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    # after the text that calls an adapter, something that it can change
    rows = [[*ids, *call, *ids[:KEEP_COUNT]] if call else ids for ids in given]
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    return padded["input_ids"], padded["attention_mask"]


@torch.inference_mode()
def compute_row_logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits at the last tokens (at most eight) of each row of token ids: (tokens, vocabulary), float32, on the CPU."""
    model.eval()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    last = {"logits_to_keep": KEEP_COUNT} if "logits_to_keep" in signature(inner.forward).parameters else {}
    given = [torch.tensor([ids], device=get_input_device(model)) for ids in rows]
    found = [model(input_ids=ids, **_decoder_inputs(model, ids), **last).logits for ids in given]
    return torch.cat([(one[0, -KEEP_COUNT:] if one.dim() == 3 else one).float().cpu() for one in found])


def _decoder_inputs(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a decoder of its own is given: the same text."""
    return {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}


def logit_tolerance(adapted: torch.Tensor, effect: float, dtype: str) -> float:
    """Largest |Δlogit| taken for equal between two computations of an adapter's logits in `dtype`. `effect`: max |Δlogit| from the base."""
    return EPS_UNITS * torch.finfo(getattr(torch, dtype)).eps * adapted.abs().max().item() + EFFECT_SHARE * effect


def compare_logits(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """How far `other` is from `one`: max |Δlogit|, mean KL(one‖other) in nats, share of equal first choices."""
    log_one, log_other = one.log_softmax(-1), other.log_softmax(-1)
    return {
        "max_logit_difference": (one - other).abs().max().item(),
        "kl_divergence": max(0.0, (log_one.exp() * (log_one - log_other)).sum(-1).mean().item()),
        "top1_agreement": (one.argmax(-1) == other.argmax(-1)).float().mean().item(),
    }


def extract_top_logits(values: torch.Tensor) -> dict[str, Any]:
    """A few kilobytes that tell whether logits are the same: the highest of each token, with their places."""
    top = values.topk(min(KEEP_COUNT, values.shape[-1]), dim=-1)
    return {"indices": top.indices.tolist(), "values": top.values.tolist()}


def measure_distance(values: torch.Tensor, kept: dict[str, Any]) -> float | None:
    """Max |Δlogit| between logits and a kept signature; None if the shapes have nothing in common."""
    indices, expected = torch.tensor(kept["indices"]), torch.tensor(kept["values"])
    if indices.shape[0] != values.shape[0] or int(indices.max()) >= values.shape[1]:
        return None
    return (values.gather(1, indices) - expected).abs().max().item()
