"""Where a joint training is: one bar, or a line now and then, for all cells."""

import time
from typing import Any

from peftrun import console
from peftrun.training import fit
from peftrun.training.joint.step import CellBatch

LOG_INTERVAL_SECONDS = 5.0  # seconds between lines where there is no terminal


class Progress:
    """Counts the steps of all cells. `jobs`: what the cells train."""

    def __init__(self, jobs: list[Any]) -> None:
        self.total = sum(
            fit.count_steps(job.spec.trainer, len(job.rows.train)) * job.spec.trainer.gradient_accumulation_steps
            for job in jobs
        )
        self.done, self.tokens, self.said = 0, 0, 0.0
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

    def step(self, turns: list[CellBatch]) -> None:
        """One batch of each of these cells has been learned."""
        self.done += len(turns)
        self.tokens += sum(int(turn.inputs["attention_mask"].sum()) for turn in turns)
        losses = [float(turn.loss) for turn in turns if turn.loss is not None]
        seconds = time.perf_counter() - self.started
        note = f"{len(turns)} {'cell' if len(turns) == 1 else 'cells'} · loss {min(losses):.4f} to {max(losses):.4f} · {self.tokens / seconds:.0f} tokens/s"
        if self.bar:
            self.bar.update(self.task, completed=self.done, note=note)
        elif seconds - self.said > LOG_INTERVAL_SECONDS:
            self.said = seconds
            left = seconds / self.done * max(0, self.total - self.done)
            console.print_info(f"batch {self.done}/{self.total} of all cells · {note} · {left:.0f} s left")
        else:
            console.set_activity(f"batch {self.done}/{self.total} of all cells · {note}")
