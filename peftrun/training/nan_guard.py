"""A loss that is no number ends the run at once, and the rows it came from are named."""

from typing import Any

import torch
from transformers import Trainer

from peftrun.errors import DataError

SHOWN = 60  # characters of a text that stands for its row


def raise_on_nan_loss(trainer: Trainer, rows: list[dict[str, Any]], names: list[str], tokenizer: Any) -> None:
    """Looks at every loss that `trainer` computes. `names`: where each of its `rows` comes from.

    Raises (later, from its steps): DataError: the loss is no finite number.
    """
    inner = trainer.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ids = inputs.get("input_ids")
        found = inner(model, inputs, *args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        if not torch.isfinite(loss).all():
            step = trainer.state.global_step + 1
            who = _describe_rows(ids, rows, names, tokenizer) if ids is not None else ""
            raise DataError(
                f"the loss is {loss.mean().item()} at step {step}{who}; nothing was saved. Lower trainer.learning_rate "
                f"(now {trainer.args.learning_rate:g}), mend or remove the row, or type device.dtype=float32"
            )
        return found

    trainer.compute_loss = compute_loss


def _describe_rows(ids: torch.Tensor, rows: list[dict[str, Any]], names: list[str], tokenizer: Any) -> str:
    """The rows of a batch by where they come from; those that are not known again, by how they begin."""
    sources: dict[str, list[str]] = {}
    for batch in ids.tolist():
        same = [
            name for row, name in zip(rows, names, strict=True) if name and _contains_row(batch, row.get("input_ids"))
        ]
        begin = tokenizer.decode(batch[:SHOWN], skip_special_tokens=True).strip()[:SHOWN]
        for name in same or [f"texts: row {begin!r}"]:
            source, _, number = name.rpartition(": row ")
            sources.setdefault(source, []).append(number)
    told = (f"{source}: {'row' if len(found) == 1 else 'rows'} {', '.join(found)}" for source, found in sources.items())
    return f", in a batch of {'; '.join(told)}"


def _contains_row(batch: list[int], row: list[int] | None) -> bool:
    """Whether a row of a batch is this one, padded on either side, or holds it among others."""
    if not row or len(row) > len(batch):
        return False
    starts = (place for place, token in enumerate(batch[: len(batch) - len(row) + 1]) if token == row[0])
    return any(batch[place : place + len(row)] == row for place in starts)
