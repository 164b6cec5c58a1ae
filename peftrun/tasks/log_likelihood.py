"""Log-likelihoods of completions under a model."""

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
    scores = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        rows = [
            prompt + completion
            for prompt, completion in zip(batch, completions[start : start + batch_size], strict=True)
        ]
        ids, mask = pad_rows(rows, pad, get_input_device(model))  # (B, T); right padding needs no position ids
        # Logits at position t score token t + 1, so none before the end of the shortest prompt is needed.
        begin = 0 if traits.needs_whole_sequence(model) else min(map(len, batch)) - 1
        keep = {} if begin == 0 else {"logits_to_keep": ids.shape[1] - begin}
        logits = model(input_ids=ids, attention_mask=mask, **keep).logits
        logits = logits[
            :, begin - ids.shape[1] :
        ]  # (B, T − begin, vocab); a model may put virtual tokens before the row
        for i, (prompt, row) in enumerate(zip(batch, rows, strict=True)):
            completion_logits = logits[i, len(prompt) - 1 - begin : len(row) - 1 - begin]  # (completion, vocab)
            log_probs = completion_logits.float().log_softmax(-1)
            scores.append(log_probs.gather(-1, ids[i, len(prompt) : len(row), None]).sum().cpu())
    model.train(was_training)
    return torch.stack(scores)


def pad_rows(rows: list[list[int]], pad: int, device: Any, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (rows, longest row), padded on the right unless `left`."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        fill = width - len(row)
        ids.append([pad] * fill + row if left else row + [pad] * fill)
        mask.append([0] * fill + [1] * len(row) if left else [1] * len(row) + [0] * fill)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def compare_with_reference(
    model: Any, pad: int, prompts: list[list[int]], completions: list[list[int]], batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihoods under the model, and their log-ratios to the reference model (0 without an adapter): (rows,) each, in nats."""
    scores = compute_log_likelihoods(model, pad, prompts, completions, batch_size)
    if not hasattr(model, "disable_adapter"):
        return scores, torch.zeros_like(scores)
    with model.disable_adapter():
        reference_scores = compute_log_likelihoods(model, pad, prompts, completions, batch_size)
    return scores, scores - reference_scores
