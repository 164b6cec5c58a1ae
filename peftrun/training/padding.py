"""How much of what a training computes is padding: a batch is as wide as its longest row."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from peftrun.config.schema.run import TrainerSpec

LARGE_SHARE = 0.3  # of the computed positions, above which the summary says how to compute less


@dataclass
class PaddingCount:
    """Positions that were computed, and how many of them were tokens: a number on the device, so that no step waits for it."""

    positions: int = 0
    tokens: torch.Tensor | None = None

    def add(self, mask: torch.Tensor) -> None:
        """Counts a batch. Args: mask: (B, T), 0 where a row is padded."""
        tokens = mask.detach().sum()
        self.positions += mask.numel()
        self.tokens = tokens if self.tokens is None else self.tokens + tokens

    def compute_share(self) -> float | None:
        """The share of padding in all positions; None: no batch had a mask."""
        return None if self.tokens is None else round(1 - int(self.tokens) / self.positions, 4)


def count_padding(trainer: Trainer) -> PaddingCount:
    """Counts, from now on, the padding in every batch that `trainer` learns from in this process."""
    count, inner = PaddingCount(), trainer.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        if mask is not None and trainer.model.training:
            count.add(mask)
        return inner(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    return count


def describe_padding(share: float | None, trainer: TrainerSpec) -> list[tuple[str, str]]:
    """The row of the summary about padding, with the key that makes it less; [] if there is little."""
    if share is None or share <= LARGE_SHARE:
        return []
    grouped = trainer.train_sampling_strategy == "group_by_length"
    advice = "trainer.packing=true" if grouped else "trainer.train_sampling_strategy=group_by_length"
    return [("padding", f"{share:.0%} of what was computed; {advice} computes less")]
