"""Ends a run at the first loss that is not finite, and names the rows of its batch.

On a CPU a loss is checked as soon as it is computed. On a GPU the host runs ahead of the device, and reading a loss would have it
wait: there a loss is copied to the host while the device computes on, and read once the next one has been queued, so that a run
ends at most one batch late. Whatever is pending is read before anything is logged, evaluated or saved.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from transformers import Trainer, TrainerCallback

from peftrun.errors import DataError

MAX_SHOWN = 60  # tokens, and then characters, of a text that identifies a row without a known source


@dataclass(frozen=True)
class PendingLoss:
    """A loss on its way to the host. `copied`: the event after its copy; None: it is there."""

    value: torch.Tensor
    copied: torch.cuda.Event | None
    step: int
    ids: torch.Tensor | None  # (B, T)

    def read(self) -> float:
        """Waits for this loss alone, not for what the device was given after it."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.value.item()


class NanGuard(TrainerCallback):
    """Checks every loss that a trainer computes.

    Args: names: where each of its `rows` comes from. lag: losses that may be read later than they are computed.
    """

    def __init__(
        self, trainer: Trainer, rows: list[dict[str, Any]], names: list[str], tokenizer: Any, lag: int
    ) -> None:
        self.trainer, self.rows, self.names, self.tokenizer, self.lag = trainer, rows, names, tokenizer, lag
        self.pending: deque[PendingLoss] = deque()

    def add(self, loss: torch.Tensor, ids: torch.Tensor | None) -> None:
        """Takes a loss. Raises: DataError: one of those that are due is not finite."""
        value, copied = _start_copy(loss.detach().float().mean())
        self.pending.append(PendingLoss(value, copied, self.trainer.state.global_step + 1, ids))
        self.check(self.lag if self.trainer.model.training else 0)

    def check(self, keep: int = 0) -> None:
        """Reads all losses but the last `keep`. Raises: DataError: one of them is not finite."""
        while len(self.pending) > keep:
            loss = self.pending.popleft()
            value = loss.read()
            if not math.isfinite(value):
                self.refuse_loss(value, loss.step, loss.ids)

    def refuse_loss(self, loss: float, step: int, ids: torch.Tensor | None) -> NoReturn:
        """Raises: DataError: that this loss is not finite. Args: ids: of its batch, (B, T)."""
        batch = "" if ids is None else _describe_rows(ids, self.rows, self.names, self.tokenizer)
        raise DataError(
            f"the loss is {loss} at step {step}{batch}; nothing was saved. Lower trainer.learning_rate "
            f"(now {self.trainer.args.learning_rate:g}), fix or remove the row, or type device.dtype=float32"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reads all losses before a log, an evaluation or a checkpoint."""
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self.check()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The same at the end of an epoch."""
        self.check()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The same before the adapter is saved."""
        self.check()


def raise_on_nan_loss(
    trainer: Trainer, rows: list[dict[str, Any]], names: list[str], tokenizer: Any, lag: int | None = None
) -> None:
    """Checks every loss that `trainer` computes. Args: names: where each of its `rows` comes from. lag: losses that are
    read later than they are computed; None: one on a GPU, else none.

    Raises (later, from the trainer's steps): DataError: the loss is not finite.
    """
    lag = int(trainer.args.device.type == "cuda") if lag is None else lag
    guard = NanGuard(trainer, rows, names, tokenizer, lag)
    if hasattr(trainer, "refuse_loss"):  # it reads its losses by itself
        trainer.refuse_loss = guard.refuse_loss
        return
    inner = trainer.compute_loss
    trainer.add_callback(guard)

    def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ids = inputs.get("input_ids")
        output = inner(model, inputs, *args, **kwargs)
        guard.add(output[0] if isinstance(output, tuple) else output, ids)
        return output

    trainer.compute_loss = compute_loss


def _start_copy(value: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A number on the device as one in the host's memory, and the event after which it is there."""
    if value.device.type != "cuda":
        return value, None
    copy = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return copy, copied


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
