"""What is logged while a Trainer runs: metrics.jsonl, a progress bar or plain lines, markers on complete checkpoints."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from peftrun import console, trackers
from peftrun.formatting import format_duration
from peftrun.io import atomic_files
from peftrun.system import memory
from peftrun.training import distributed, uploads
from peftrun.training.checkpoints import mark_complete
from peftrun.training.validation_metrics import PREFIX

EVAL_LOSS = f"{PREFIX}loss"


class MetricsCallback(TrainerCallback):
    """Writes a row to metrics.jsonl at each log, and shows the progress of the training.

    Attributes:
        measured: names of the metrics that an evaluation during training computes.

    Args:
        digests: hashes of what the training is made from, stored in each checkpoint.
        each_step: called with the step's number (from 1) once the weights have moved.
        begin: called before the first step.
        shown: False for a cell of a joint run, whose progress is shown for all cells together.
    """

    def __init__(
        self,
        metrics_file: Path,
        digests: dict[str, str],
        each_step: Callable[[int], None] | None = None,
        begin: Callable[[], None] | None = None,
        *,
        shown: bool = True,
    ) -> None:
        self.metrics_file, self.digests, self.shown = metrics_file, digests, shown
        self.each_step, self.begin = each_step, begin
        self.tokens, self.save_later, self.measured = 0.0, False, {EVAL_LOSS}
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock, and the progress bar on a terminal."""
        if self.begin:
            self.begin()
        self.started, self.first_step = time.perf_counter(), state.global_step
        if self.shown and console.is_terminal():
            self.bar = console.create_progress_bar()
            self.bar.start()
            self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, note="")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the activity that is printed if nothing is logged for long."""
        if self.shown:
            console.set_activity(f"step {state.global_step + 1}/{state.max_steps}")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Calls the method's step hook: the weights have moved, the gradients are not cleared yet."""
        if self.each_step:
            self.each_step(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar, and requests a log at the last step whatever `logging_steps` is."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        if args.eval_strategy == "epoch" and (control.should_training_stop or state.epoch == int(state.epoch)):
            # The evaluation at the end of an epoch must be in the checkpoint that a run resumes from, so that it is not
            # repeated: the checkpoint is postponed to on_epoch_end.
            self.save_later, control.should_save = control.should_save, False
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Requests the checkpoint that the last step postponed."""
        control.should_save |= self.save_later
        self.save_later = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Writes one row of metrics, and updates the bar or prints one line."""
        if not logs or not distributed.is_main_process():
            return
        where = f"step {state.global_step}/{state.max_steps}"
        if "loss" not in logs:
            return
        seconds = time.perf_counter() - self.started
        self._log_row({"step": state.global_step, "seconds": round(seconds, 3), **logs, **memory.measure_memory()})
        tokens = float(logs.get("num_tokens", 0.0))  # since the first step of the run, before a resume too
        if not self.tokens:
            self.tokens_before = tokens if state.global_step == self.first_step else 0.0
        self.tokens = tokens
        rate = (tokens - self.tokens_before) / seconds if seconds else 0.0
        remaining = seconds / max(1, state.global_step - self.first_step) * (state.max_steps - state.global_step)
        note = f"loss {logs['loss']:.4f}" + (f" · {rate:.0f} tokens/s" if tokens else "")
        if self.bar:
            self.bar.update(self.task, completed=state.global_step, note=note)
        elif self.shown:
            console.print_info(f"{where} · {note} · {format_duration(round(remaining))} left")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Writes one row of the metrics on the validation rows, and prints them."""
        if not metrics or not distributed.is_main_process():
            return
        row = {name: value for name, value in metrics.items() if name in self.measured}
        self._log_row({"step": state.global_step, **row})
        if not self.shown:
            return
        best, current = "", row[args.metric_for_best_model]
        if state.best_metric is not None:  # of the evaluations before this one
            value = (max if args.greater_is_better else min)(state.best_metric, current)
            best = f"; best {args.metric_for_best_model.removeprefix(PREFIX)} so far {value:.4f}"
        texts = ", ".join(f"{name.removeprefix(PREFIX)} {value:.4f}" for name, value in row.items())
        console.print_info(f"step {state.global_step}/{state.max_steps} · validation {texts}{best}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks the checkpoint that the Trainer has just written as complete, and queues it for upload."""
        distributed.wait_for_everyone()  # every process writes its own random state into the checkpoint
        if distributed.is_main_process():
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(checkpoint, self.digests)
            uploads.send_checkpoint(self.metrics_file.parent, checkpoint)

    def close(self) -> None:
        """Removes the bar; called after an error too."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _log_row(self, row: dict[str, Any]) -> None:
        atomic_files.append_json_line(self.metrics_file, row)
        trackers.log_metrics(self.metrics_file.parent, row)
