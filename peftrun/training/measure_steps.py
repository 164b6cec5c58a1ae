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
from peftrun.training.session import TrainingSession

WARMUP_STEPS = 1  # steps before those that count: the first one compiles and allocates
MAX_EVAL_ROWS = 16  # held-out rows that are measured
DISABLED_OPTIONS: dict[str, Any] = {
    "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": None, "warmup_steps": 0.0,

}  # fmt: skip


@dataclass(frozen=True)
class TrainingMeasurement:
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


def measure_training(spec: RunSpec, steps: int) -> TrainingMeasurement:
    """Trains for one step and then `steps` more, and measures some held-out rows before and after, as `spec` (action=train) asks.

    Raises: PeftrunError: what the training would find at fault with its base, rows or device. DeviceError: a GPU has too little memory.
    """
    assert isinstance(spec.action, TrainAction)
    try:
        with tempfile.TemporaryDirectory(prefix="peftrun-plan-") as folder:
            return _measure_in_folder(spec, steps, Path(folder), spec.action.evaluate_before)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "device: this GPU has too little memory for one step; type trainer.gradient_checkpointing=true or a smaller "
            "trainer.per_device_train_batch_size"
        ) from error
    finally:
        gc.collect()


def _measure_in_folder(spec: RunSpec, steps: int, folder: Path, evaluate_before: bool) -> TrainingMeasurement:
    started = time.perf_counter()
    job = jobs.prepare_session(dataclasses.replace(spec, tracker=NoTracker("none")), folder)
    ready = time.perf_counter()
    before = _time_eval_row(job, job.base.model) if evaluate_before else 0.0
    again = time.perf_counter()
    net = _build_net(job)
    starting = ready - started + time.perf_counter() - again
    counts = attach.count_parameters(net)
    console.print_info(f"measuring {steps} steps of this training; nothing is saved")
    step = _time_step(job, net, steps)
    after = _time_eval_row(job, net)
    apart = spec.task.data.validation_rows or 0
    rows = (len(job.rows.train) - apart, len(job.rows.held_out), apart)
    return TrainingMeasurement(
        *counts,
        *rows,
        lengths.find_longest(job.rows, job.spec),
        step,
        starting,
        (before, after),
        _get_peak_memory(job),
        job.place.note,
    )


def _build_net(job: TrainingSession) -> Any:
    if isinstance(job.spec.lora, NoAdapter):
        return job.base.model.requires_grad_(True)
    return attach.attach_adapter(job.base, job.spec.lora, job.spec.seed, jobs.build_init_data(job))


def _time_eval_row(job: TrainingSession, net: Any) -> float:
    """Seconds that one held-out row takes, of some that stand for all; what is measured is not told."""
    rows, task = job.rows.held_out, job.spec.task
    some = rows[:: max(1, len(rows) // MAX_EVAL_ROWS)][:MAX_EVAL_ROWS]
    job.kind.evaluate(net, job.base.tokenizer, some[:1], 1, task)
    started = time.perf_counter()
    job.kind.evaluate(net, job.base.tokenizer, some, job.spec.trainer.per_device_eval_batch_size, task)
    return (time.perf_counter() - started) / len(some)


def _time_step(job: TrainingSession, net: Any, steps: int) -> float:
    """Seconds of a step by the training's own loop, as if its rows were of mean length."""
    stamps: list[float] = []
    how = fit.NO_HOOKS if isinstance(job.spec.lora, NoAdapter) else jobs.build_hooks(job, net)

    def each_step(step: int) -> None:
        if how.each_step:
            how.each_step(step)
        stamps.append(time.perf_counter())

    trainer = dataclasses.replace(
        job.spec.trainer, **DISABLED_OPTIONS, max_steps=WARMUP_STEPS + steps, logging_steps=WARMUP_STEPS + steps
    )
    short = dataclasses.replace(job, spec=dataclasses.replace(job.spec, trainer=trainer), checkpoint=None)
    fitted = jobs.fit(short, net, fit.MethodHooks(how.optimizer, each_step))
    measured = (stamps[-1] - stamps[WARMUP_STEPS - 1]) / steps
    return measured * _scale_to_mean(job, fitted.tokens / fitted.steps)


def _scale_to_mean(job: TrainingSession, tokens: float) -> float:
    """What a step of mean length takes to one that had so many tokens; 1 where tokens are not told or fill whole rows."""
    rows, trainer = lengths.list_lengths(job.rows), job.spec.trainer
    if not rows or not tokens or trainer.packing:
        return 1.0
    mean = sum(rows) / len(rows)
    return mean * trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps / tokens


def _get_peak_memory(job: TrainingSession) -> int:
    if job.place.name == "cuda":
        return torch.cuda.max_memory_allocated()
    return memory.get_peak_resident()
