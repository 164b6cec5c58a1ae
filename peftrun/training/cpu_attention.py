"""Attention by plain products where these are faster: bfloat16 on a CPU, rows that are not long.

torch's fused attention has a slow backward pass there: a training step with rows of 84 tokens takes a quarter less without it, one with 512 a sixth less;
in float32 there is no difference. Plain products keep the scores of a layer in memory, tokens² of each row and head, hence the limit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from peftrun.config.schema.run import ModelSpec, TaskSpec, TrainerSpec
from peftrun.models.device import Device

MAX_ROW_TOKENS = 512  # tokens of a row
FUSED, EAGER = "sdpa", "eager"  # transformers' words


def is_eager_faster(model: ModelSpec, task: TaskSpec, trainer: TrainerSpec, place: Device) -> bool:
    """Whether a training is faster by plain products; what the user has chosen stays."""
    chosen = model.attn_implementation is not None or trainer.torch_compile or trainer.padding_free
    return not chosen and place.name == "cpu" and place.dtype == torch.bfloat16 and task.max_length <= MAX_ROW_TOKENS


@contextmanager
def use_eager_attention(model: Any, asked: bool) -> Iterator[None]:
    """Inside, `model` (a transformers model) attends by plain products, if asked for and if it would by torch's fused attention."""
    if not asked or model.config._attn_implementation != FUSED:
        yield
        return
    model.set_attn_implementation(EAGER)
    try:
        yield
    finally:
        model.set_attn_implementation(FUSED)
