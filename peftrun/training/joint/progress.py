"""Progress of a joint training: one bar, or a line now and then, for all cells."""

import time
from typing import Any

from peftrun import console
from peftrun.formatting import format_count, format_duration
from peftrun.training import fit
from peftrun.training.joint.step import CellBatch

LOG_INTERVAL_SECONDS = 5.0  # between lines where there is no terminal


class Progress:
    """Counts the batches of all cells. Args: sessions: what the cells train."""

    def __init__(self, sessions: list[Any]) -> None:
        self.total = sum(
            fit.count_steps(session.spec.trainer, len(session.rows.train))
            * session.spec.trainer.gradient_accumulation_steps
            for session in sessions
        )
        self.done, self.tokens, self.last_line = 0, 0, 0.0
        self.bar: Any = None

    def __enter__(self) -> "Progress":
        self.started = time.perf_counter()
        if console.is_terminal():
            self.bar = console.create_progress_bar()
            self.bar.start()
            self.task = self.bar.add_task("training", total=self.total, note="")
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, batches: list[CellBatch]) -> None:
        """Reports that one batch of each of these cells has been trained on."""
        self.done += len(batches)
        self.tokens += sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
        losses = [batch.recent_loss for batch in batches]
        seconds = time.perf_counter() - self.started
        cells = format_count(len(batches), "cell")
        note = f"{cells} · loss {min(losses):.4f} to {max(losses):.4f} · {self.tokens / seconds:.0f} tokens/s"
        if self.bar:
            self.bar.update(self.task, completed=self.done, note=note)
        elif seconds - self.last_line > LOG_INTERVAL_SECONDS:
            self.last_line = seconds
            remaining = seconds / self.done * max(0, self.total - self.done)
            console.print_info(
                f"batch {self.done}/{self.total} of all cells · {note} · {format_duration(round(remaining))} left"
            )
        else:
            console.set_activity(f"batch {self.done}/{self.total} of all cells · {note}")
