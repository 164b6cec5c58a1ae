"""Ends a run at the first loss that is not finite, and names the rows of its batch."""

from typing import Any, NoReturn

import torch
from transformers import Trainer

from peftrun.errors import DataError

MAX_SHOWN = 60  # tokens, and then characters, of a text that identifies a row without a known source


def raise_on_nan_loss(trainer: Trainer, rows: list[dict[str, Any]], names: list[str], tokenizer: Any) -> None:
    """Checks every loss that `trainer` computes. Args: names: where each of its `rows` comes from.

    Raises (later, from the trainer's steps): DataError: the loss is not finite.
    """

    def refuse_loss(loss: float, step: int, ids: torch.Tensor | None) -> NoReturn:
        batch = _describe_rows(ids, rows, names, tokenizer) if ids is not None else ""
        raise DataError(
            f"the loss is {loss} at step {step}{batch}; nothing was saved. Lower trainer.learning_rate "
            f"(now {trainer.args.learning_rate:g}), fix or remove the row, or type device.dtype=float32"
        )

    if hasattr(trainer, "refuse_loss"):  # it reads its losses by itself
        trainer.refuse_loss = refuse_loss
        return
    inner = trainer.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ids = inputs.get("input_ids")
        output = inner(model, inputs, *args, **kwargs)
        loss = output[0] if isinstance(output, tuple) else output
        if not torch.isfinite(loss).all():
            refuse_loss(loss.mean().item(), trainer.state.global_step + 1, ids)
        return output

    trainer.compute_loss = compute_loss


def _describe_rows(ids: torch.Tensor, rows: list[dict[str, Any]], names: list[str], tokenizer: Any) -> str:
    """`, in a batch of SOURCE: rows 3, 7`; rows that cannot be identified are shown by how they begin. Args: ids: (B, T)."""
    sources: dict[str, list[str]] = {}
    for batch_row in ids.tolist():
        matches = [
            name
            for row, name in zip(rows, names, strict=True)
            if name and _contains_row(batch_row, row.get("input_ids"))
        ]
        start = tokenizer.decode(batch_row[:MAX_SHOWN], skip_special_tokens=True).strip()[:MAX_SHOWN]
        for name in matches or [f"texts: row {start!r}"]:
            source, _, number = name.rpartition(": row ")
            sources.setdefault(source, []).append(number)
    parts = (
        f"{source}: {'row' if len(numbers) == 1 else 'rows'} {', '.join(numbers)}"
        for source, numbers in sources.items()
    )
    return f", in a batch of {'; '.join(parts)}"


def _contains_row(batch_row: list[int], row: list[int] | None) -> bool:
    """Whether a row of a batch is this row with padding on either side, or is packed from it and others."""
    if not row or len(row) > len(batch_row):
        return False
    starts = (index for index, token in enumerate(batch_row[: len(batch_row) - len(row) + 1]) if token == row[0])
    return any(batch_row[start : start + len(row)] == row for start in starts)
