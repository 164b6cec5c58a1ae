"""What the joint steps came to for each cell: kept on the device, and read for all cells together.

On a GPU the host prepares a step while the one before is computed, so what it reads is a step old, except where it must know: at a
log, an evaluation, a checkpoint, a comparison of cells.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Totals(NamedTuple):
    """Of one cell.

    Attributes:
        batches, finite: batches so far, and how many of the first ones had a finite loss.
        loss: of the last batch.
        logged_loss, logged_accuracy: sums over the batches since `reset_logged`.
        rung_loss: sum over the batches since `reset_rung`.
        grad_norm: of the last optimizer step, before clipping.
    """

    batches: float
    finite: float
    loss: float
    logged_loss: float
    logged_accuracy: float
    rung_loss: float
    grad_norm: float


LOGGED = slice(
    3, 5
)  # columns that a log resets, and those below: one that a rung resets, one that an optimizer step sets
RUNG, GRAD_NORM = 5, 6


@dataclass
class _Snapshot:
    copy: torch.Tensor  # (cells, columns) on the CPU; on a GPU there once the event has happened
    event: Any
    rows: list[list[float]] | None = None

    def read(self) -> list[list[float]]:
        if self.rows is None:
            if self.event:
                self.event.synchronize()
            self.rows = self.copy.tolist()
        return self.rows


class StepTotals:
    """The totals of so many cells on a device. `lag`: by how many steps `peek` is behind."""

    def __init__(self, cells: int, device: torch.device) -> None:
        self.lag = 1 if device.type == "cuda" else 0
        self.values = torch.zeros(cells, len(Totals.__annotations__), device=device)  # (cells, columns)
        self.snapshots: deque[_Snapshot] = deque(maxlen=2)
        self.send()

    def add(self, cells: list[int], losses: torch.Tensor, accuracies: torch.Tensor) -> None:
        """Adds one batch of each of these cells. Args: losses, accuracies: (C,)."""
        index = torch.tensor(cells).to(self.values.device, non_blocking=True)
        batches, finite, _, loss_sum, accuracy_sum, rung_sum, norm = self.values[index].unbind(1)  # (C,) each
        still_finite = (finite == batches) & losses.isfinite()
        columns = [batches + 1, finite + still_finite, losses, loss_sum + losses, accuracy_sum + accuracies, rung_sum + losses, norm]  # fmt: skip
        self.values[index] = torch.stack(columns, 1)

    def set_grad_norms(self, cells: list[int], norms: torch.Tensor) -> None:
        """Sets the norms of these cells' optimizer steps. Args: norms: (C,)."""
        index = torch.tensor(cells).to(self.values.device, non_blocking=True)
        self.values[index, GRAD_NORM] = norms

    def send(self) -> None:
        """Starts to copy the totals to the host; waits for the copy before, so that the host is at most one step ahead."""
        if self.values.device.type == "cuda":
            for snapshot in self.snapshots:
                snapshot.read()
            copy = torch.empty(self.values.shape, pin_memory=True).copy_(self.values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self.snapshots.append(_Snapshot(copy, event))
        else:
            self.snapshots.append(_Snapshot(self.values.cpu().clone(), None))

    def read(self, cell: int) -> Totals:
        """The cell's totals after the last step; waits for it."""
        return Totals(*self.snapshots[-1].read()[cell])

    def peek(self, cell: int) -> Totals:
        """The same without waiting: on a GPU after the step before the last."""
        return Totals(*self.snapshots[-1 - self.lag if len(self.snapshots) > self.lag else 0].read()[cell])

    def reset_logged(self, cell: int) -> None:
        """Begins the sums since the last log."""
        self.values[cell, LOGGED] = 0

    def reset_rung(self, cell: int) -> None:
        """Begins the sum since the last rung."""
        self.values[cell, RUNG] = 0
