"""A few steps of a training to come, on its own base and rows, to tell how long the whole takes. Nothing is saved."""

import dataclasses
import gc
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftrun import console
from peftrun.adapters import attach
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.lora import NoAdapter
from peftrun.config.schema.run import RunSpec
from peftrun.config.schema.trackers import NoTracker
from peftrun.errors import DeviceError
from peftrun.planning.memory import Lengths
from peftrun.system import memory
from peftrun.training import fit, lengths
from peftrun.training import session as jobs
from peftrun.training.session import Job

WARM_UP = 1  # steps before those that count: the first one compiles and allocates
FEW = 16  # held-out rows that are measured
OFF: dict[str, Any] = {
    "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": None, "warmup_steps": 0.0,

}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        trained, parameters: counted on the adapted base.
        rows, held_out, validation: how many the task has to train on, to measure on, and to measure on while training.
        lengths: of training rows; None: they hold no tokens of their own.
        step: seconds of one optimiser step with rows of mean length.
        starting: seconds until the first step: base, rows, adapter.
        evaluating: seconds that a held-out row takes, before and after training.
        peak: bytes that this process held at its height (of a GPU, where the run is on one).
    """

    trained: int
    parameters: int
    rows: int
    held_out: int
    validation: int
    lengths: Lengths | None
    step: float
    starting: float
    evaluating: tuple[float, float]
    peak: int
    device: str


def take(spec: RunSpec, steps: int) -> Measured:
    """Trains for one step and then `steps` more, and measures some held-out rows before and after, as `spec` (action=train) asks.

    Raises: PeftrunError: what the training would find at fault with its base, rows or device. DeviceError: a GPU has too little memory.
    """
    assert isinstance(spec.action, TrainAction)
    try:
        with tempfile.TemporaryDirectory(prefix="peftrun-plan-") as folder:
            return _taken(spec, steps, Path(folder), spec.action.evaluate_before)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "device: this GPU has too little memory for one step; type trainer.gradient_checkpointing=true or a smaller "
            "trainer.per_device_train_batch_size"
        ) from error
    finally:
        gc.collect()


def _taken(spec: RunSpec, steps: int, folder: Path, evaluate_before: bool) -> Measured:
    started = time.perf_counter()
    job = jobs.prepare(dataclasses.replace(spec, tracker=NoTracker("none")), folder)
    ready = time.perf_counter()
    before = _row_seconds(job, job.base.model) if evaluate_before else 0.0
    again = time.perf_counter()
    net = _net(job)
    starting = ready - started + time.perf_counter() - again
    counts = attach.trainable(net)
    console.say(f"measuring {steps} steps of this training; nothing is saved")
    step = _step_seconds(job, net, steps)
    after = _row_seconds(job, net)
    apart = spec.task.data.validation_rows or 0
    rows = (len(job.rows.train) - apart, len(job.rows.held_out), apart)
    return Measured(
        *counts,
        *rows,
        lengths.of_longest(job.rows, job.spec),
        step,
        starting,
        (before, after),
        _peak(job),
        job.place.note,
    )


def _net(job: Job) -> Any:
    if isinstance(job.spec.lora, NoAdapter):
        return job.base.model.requires_grad_(True)
    return attach.attach(job.base, job.spec.lora, job.spec.seed, jobs.start(job))


def _row_seconds(job: Job, net: Any) -> float:
    """Seconds that one held-out row takes, of some that stand for all; what is measured is not told."""
    rows, task = job.rows.held_out, job.spec.task
    some = rows[:: max(1, len(rows) // FEW)][:FEW]
    job.kind.evaluate(net, job.base.tokenizer, some[:1], 1, task)
    started = time.perf_counter()
    job.kind.evaluate(net, job.base.tokenizer, some, job.spec.trainer.per_device_eval_batch_size, task)
    return (time.perf_counter() - started) / len(some)


def _step_seconds(job: Job, net: Any, steps: int) -> float:
    """Seconds of a step by the training's own loop, as if its rows were of mean length."""
    stamps: list[float] = []
    how = fit.PLAIN if isinstance(job.spec.lora, NoAdapter) else jobs.method(job, net)

    def each_step(step: int) -> None:
        if how.each_step:
            how.each_step(step)
        stamps.append(time.perf_counter())

    trainer = dataclasses.replace(job.spec.trainer, **OFF, max_steps=WARM_UP + steps, logging_steps=WARM_UP + steps)
    short = dataclasses.replace(job, spec=dataclasses.replace(job.spec, trainer=trainer), checkpoint=None)
    fitted = jobs.fit(short, net, fit.Method(how.optimizer, each_step))
    measured = (stamps[-1] - stamps[WARM_UP - 1]) / steps
    return measured * _to_mean(job, fitted.tokens / fitted.steps)


def _to_mean(job: Job, tokens: float) -> float:
    """What a step of mean length takes to one that had so many tokens; 1 where tokens are not told or fill whole rows."""
    rows, trainer = lengths.of_each(job.rows), job.spec.trainer
    if not rows or not tokens or trainer.packing:
        return 1.0
    mean = sum(rows) / len(rows)
    return mean * trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps / tokens


def _peak(job: Job) -> int:
    if job.place.name == "cuda":
        return torch.cuda.max_memory_allocated()
    return memory.peak_resident()
