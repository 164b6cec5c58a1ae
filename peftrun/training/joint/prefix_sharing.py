"""How the batches of many cells go through the base model with little waste: grouped by length, their common prefix once.

Rows made by one template begin with the same tokens. This prefix is computed once per cell and step instead of once per
row, and every row continues from its keys and values. What a decoder computes for a token depends only on the tokens
before it, so nothing else changes.
"""

from collections.abc import Sequence
from typing import Any

import torch

from peftrun.compat.transformers import is_stateful
from peftrun.tasks.length_checks import IGNORE_INDEX

CPU_PASS_COST = 256  # tokens that take as long as the fixed cost of one more forward and backward pass, measured
# On a GPU that cost is the launching of kernels: about so many seconds for each layer, the host being busy with nothing else, …
LAUNCH_SECONDS = 0.8e-3
GPU_FLOPS = 3e14  # … and a base model of 1.2 billion parameters, of 7.4 billion too, trains at so many operations a second on an H200


def estimate_pass_cost(model: Any) -> int:
    """Tokens that take as long as the fixed cost of one more pass through the model, forward and backward."""
    if model.device.type != "cuda":
        return CPU_PASS_COST
    parameters, layers = (
        sum(one.numel() for one in model.parameters()),
        model.config.get_text_config().num_hidden_layers,
    )
    return int(
        layers * LAUNCH_SECONDS * GPU_FLOPS / (4 * parameters)
    )  # 2 operations a parameter and token forward, 2 back


def group_by_length(batches: Sequence[Any], pass_cost: int) -> list[list[Any]]:
    """The batches (CellBatch) in groups, one forward pass each, so that padding and passes cost least in total.

    Dynamic programming over the batches in order of width: best[end] is the least cost of the first `end` batches, and
    where its last group begins. A group costs rows · width of the widest, plus one pass (`pass_cost`), in tokens.
    """
    ordered = sorted(batches, key=_get_width)
    best = [(0.0, 0)]
    for end in range(1, len(ordered) + 1):
        width, rows, options = _get_width(ordered[end - 1]), 0, []
        for begin in range(end - 1, -1, -1):
            rows += ordered[begin].inputs["input_ids"].shape[0]
            options.append((best[begin][0] + rows * width + pass_cost, begin))
        best.append(min(options))
    groups, end = [], len(ordered)
    while end:
        begin = best[end][1]
        groups.append(sorted(ordered[begin:end], key=lambda batch: batch.cell))
        end = begin
    return groups


def _get_width(batch: Any) -> int:
    return int(batch.inputs["input_ids"].shape[1])


def count_common_prefix(ids: torch.Tensor, labels: torch.Tensor) -> int:
    """Tokens that all rows begin with, up to the last one whose logits are not needed. Args: ids, labels: (B, T)."""
    common = int((ids == ids[0]).all(0).int().cumprod(0).sum())  # (B, T) → (T,): 1 while all rows agree
    has_label = (labels != IGNORE_INDEX).any(0).nonzero()  # positions, in order
    # Logits of position t - 1 predict the label at t, so position t - 1 must be computed in every row.
    return max(0, min(common, int(has_label[0]) - 1)) if len(has_label) else 0


def supports_prefix_cache(model: Any) -> bool:
    """Whether every layer of a model can continue a row from the keys and values of its prefix."""
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    full_attention = layer_types == {"full_attention"} and not getattr(config, "sliding_window", None)
    return full_attention and not config.is_encoder_decoder and not is_stateful(model)


def repeat_cache(cache: Any, rows: Sequence[int], device: Any) -> Any:
    """A key-value cache of one row per cell, (cells, heads, T, D), repeated to `rows[cell]` rows each: (B, heads, T, D)."""
    cell_of_row = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows)).to(device)  # (B,)
    cache.batch_select_indices(cell_of_row)
    return cache
