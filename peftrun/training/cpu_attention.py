"""Eager attention where it is faster than torch's fused attention: in bfloat16 on a CPU, for rows that are not long.

The backward pass of fused attention is slow there: without it a training step takes a quarter less with rows of 84 tokens,
and a sixth less with rows of 512; in float32 there is no difference. Eager attention keeps the scores of a layer in memory,
(rows, heads, tokens, tokens), hence the limit.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from peftrun.compat.transformers import get_attention
from peftrun.config.schema.run import ModelSpec, TaskSpec, TrainerSpec
from peftrun.models.device import Device

MAX_ROW_TOKENS = 512
FUSED, EAGER = "sdpa", "eager"  # transformers' names of the two


def is_eager_faster(model: ModelSpec, task: TaskSpec, trainer: TrainerSpec, device: Device) -> bool:
    """Whether a training is faster with eager attention; False where the user has chosen the attention."""
    chosen = model.attn_implementation is not None or trainer.torch_compile or trainer.padding_free
    return not chosen and device.name == "cpu" and device.dtype == torch.bfloat16 and task.max_length <= MAX_ROW_TOKENS


def use_eager_attention(model: Any, enabled: bool) -> AbstractContextManager[None]:
    """Inside, `model` (a transformers model) uses eager attention, if enabled and if it would use fused attention."""
    return _replace_attention(model, FUSED, EAGER, enabled)


def use_fused_attention(model: Any, enabled: bool) -> AbstractContextManager[None]:
    """Inside, the eager attention of `use_eager_attention` is off: for an evaluation that compares with those before and after training."""
    return _replace_attention(model, EAGER, FUSED, enabled)


@contextmanager
def _replace_attention(model: Any, used: str, other: str, enabled: bool) -> Iterator[None]:
    if not enabled or get_attention(model) != used:
        yield
        return
    model.set_attn_implementation(other)
    try:
        yield
    finally:
        model.set_attn_implementation(used)
