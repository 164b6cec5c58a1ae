"""How the batches of many cells go through the base with little waste: which of them together, and what they begin with only once.

Rows of one template begin alike. Such a beginning is computed once a cell and step in place of once a row, and every row goes on from it;
what a decoder computes for a token depends on what stands before it alone, so nothing else changes.
"""

from collections.abc import Sequence
from typing import Any

import torch

from peftrun.tasks.length_checks import IGNORE_INDEX

PASS_COST_TOKENS = {
    "cpu": 256,
    "cuda": 8192,
}  # tokens that cost as much as one more pass through the base does beside them: measured on a CPU, assumed of GPUs


def group_by_length(turns: Sequence[Any], device: str) -> list[list[Any]]:
    """The turns in groups that go through the base one after another, so that padding and passes cost least together."""
    ordered = sorted(turns, key=_get_width)
    price, best = PASS_COST_TOKENS.get(device, PASS_COST_TOKENS["cuda"]), [(0.0, 0)]
    for end in range(1, len(ordered) + 1):
        wide, rows, options = _get_width(ordered[end - 1]), 0, []
        for begin in range(end - 1, -1, -1):
            rows += ordered[begin].inputs["input_ids"].shape[0]
            options.append((best[begin][0] + rows * wide + price, begin))
        best.append(min(options))
    found, end = [], len(ordered)
    while end:
        begin = best[end][1]
        found.append(sorted(ordered[begin:end], key=lambda turn: turn.cell))
        end = begin
    return found


def _get_width(turn: Any) -> int:
    return int(turn.inputs["input_ids"].shape[1])


def count_common_prefix(ids: torch.Tensor, labels: torch.Tensor) -> int:
    """Tokens that all rows begin with, up to the last one that is not yet asked what comes next."""
    alike = int((ids == ids[0]).all(0).int().cumprod(0).sum())
    learned = (labels != IGNORE_INDEX).any(0).nonzero()
    return max(0, min(alike, int(learned[0]) - 1)) if len(learned) else 0


def is_prefix_worthwhile(length: int, rows: int, cells: int, device: str) -> bool:
    """Whether a beginning of so many tokens is better computed once a cell than once a row: it costs one more pass."""
    return length * (rows - cells) > PASS_COST_TOKENS.get(device, PASS_COST_TOKENS["cuda"])


def supports_prefix_cache(model: Any) -> bool:
    """Whether a model continues a text from the keys and values of its beginning, every layer alike."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = kinds == {"full_attention"} and not getattr(config, "sliding_window", None)
    return plain and not config.is_encoder_decoder and not getattr(model, "_is_stateful", False)


def repeat_cache(cache: Any, rows: Sequence[int], device: Any) -> Any:
    """A cache of one row a cell as one of `rows` rows a cell."""
    whose = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows)).to(device)
    cache.batch_select_indices(whose)
    return cache
