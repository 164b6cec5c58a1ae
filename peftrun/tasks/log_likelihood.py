"""How likely a model finds completions of prompts."""

from typing import Any

import torch

from peftrun.adapters import traits
from peftrun.models.device import get_input_device


@torch.inference_mode()
def compute_log_likelihoods(
    model: Any, pad: int, prompts: list[list[int]], completions: list[list[int]], batch_size: int
) -> torch.Tensor:
    """Log-probability, in nats, of each completion after its prompt: (rows,), float32, on the CPU."""
    was_training = model.training
    model.eval()
    found = [
        _score_batch(model, pad, prompts[start : start + batch_size], completions[start : start + batch_size])
        for start in range(0, len(prompts), batch_size)
    ]
    model.train(was_training)
    return torch.cat(found)


def _score_batch(model: Any, pad: int, prompts: list[list[int]], completions: list[list[int]]) -> torch.Tensor:
    """Rows are padded on the right, which needs no positions of their own."""
    both = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, both))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in both], device=get_input_device(model))
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in both], device=get_input_device(model))
    begin = 0 if traits.needs_whole_sequence(model) else min(map(len, prompts)) - 1  # nothing before is judged
    kept = {} if begin == 0 else {"logits_to_keep": width - begin}
    logits = model(input_ids=ids, attention_mask=mask, **kept).logits[:, -(width - begin) :]
    return torch.stack([
        _sum_log_probs(logits[i, len(prompt) - 1 - begin : len(row) - 1 - begin], ids[i, len(prompt) : len(row)])
        for i, (prompt, row) in enumerate(zip(prompts, both, strict=True))
    ])  # fmt: skip


def _sum_log_probs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1).gather(-1, ids[:, None]).sum().cpu()


def compare_with_base(
    model: Any, pad: int, prompts: list[list[int]], completions: list[list[int]], batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihoods under the model, and how much they differ from those of its base (0 for a base itself)."""
    own = compute_log_likelihoods(model, pad, prompts, completions, batch_size)
    if not hasattr(model, "disable_adapter"):
        return own, torch.zeros_like(own)
    with model.disable_adapter():
        plain = compute_log_likelihoods(model, pad, prompts, completions, batch_size)
    return own, own - plain
