"""Measure a few steps of a training on its own base model and rows, to predict how long the whole takes. Nothing is saved."""

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
from peftrun.training import fit, lengths, start
from peftrun.training import session as training_session
from peftrun.training.session import TrainingSession

WARMUP_STEPS = 1  # steps that are not timed: the first one compiles kernels and allocates memory
MAX_EVAL_ROWS = 16  # evaluation rows that are timed
# Whatever would interrupt the timed steps, or make one of them unlike the others.
DISABLED_OPTIONS: dict[str, Any] = {
    "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": None, "warmup_steps": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class TrainingMeasurement:
    """What was measured and counted.

    Attributes:
        trained, parameters: trainable parameters and all parameters of the base model with its adapter.
        rows, held_out, validation: rows for training, for evaluation before and after it, and for validation during it.
        lengths: of the training rows; None: the rows have no tokens of their own.
        step: seconds of one optimizer step with rows of mean length.
        starting: seconds until the first step: base model, rows, adapter.
        evaluating: seconds of one evaluation row, before and after training.
        peak: peak memory in bytes: of the GPU if the run is on one, else of this process.
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
    """Trains for one step and then `steps` more as `spec` (action=train) says, and times evaluation rows before and after.

    Raises: PeftrunError: any problem that the training would have with its base model, rows or device. DeviceError: a GPU
        has too little memory.
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
    session = training_session.prepare_session(dataclasses.replace(spec, tracker=NoTracker("none")), folder)
    prepared = time.perf_counter()
    before = _time_eval_row(session, session.base.model) if evaluate_before else 0.0  # a parent adds next to nothing
    attaching = time.perf_counter()  # the evaluation in between is not part of the start
    if isinstance(session.spec.lora, NoAdapter):
        model = session.base.model.requires_grad_(True)
    else:
        model = start.attach_adapter(session)
    starting = prepared - started + time.perf_counter() - attaching
    trained, parameters = attach.count_parameters(model)
    console.print_info(f"measuring {steps} steps of this training; nothing is saved")
    step = _time_step(session, model, steps)
    after = _time_eval_row(session, model)
    num_validation = spec.task.data.num_validation_rows or 0
    on_gpu = session.place.name == "cuda"
    return TrainingMeasurement(
        trained=trained,
        parameters=parameters,
        rows=len(session.rows.train) - num_validation,
        held_out=len(session.rows.held_out),
        validation=num_validation,
        lengths=lengths.find_longest(session.rows, session.spec),
        step=step,
        starting=starting,
        evaluating=(before, after),
        peak=torch.cuda.max_memory_allocated() if on_gpu else memory.get_peak_resident(),
        device=session.place.note,
    )


def _time_eval_row(session: TrainingSession, model: Any) -> float:
    """Seconds of one evaluation row, averaged over at most MAX_EVAL_ROWS spread evenly; the metrics are not reported."""
    rows, task = session.rows.held_out, session.spec.task
    sample = rows[:: max(1, len(rows) // MAX_EVAL_ROWS)][:MAX_EVAL_ROWS]
    session.task_module.evaluate(model, session.base.tokenizer, sample[:1], 1, task)  # warm-up
    started = time.perf_counter()
    batch_size = session.spec.trainer.per_device_eval_batch_size
    session.task_module.evaluate(model, session.base.tokenizer, sample, batch_size, task)
    return (time.perf_counter() - started) / len(sample)


def _time_step(session: TrainingSession, model: Any, steps: int) -> float:
    """Seconds of a step in the training's own loop, scaled to rows of mean length."""
    stamps: list[float] = []
    hooks = fit.NO_HOOKS if isinstance(session.spec.lora, NoAdapter) else training_session.build_hooks(session, model)

    def each_step(step: int) -> None:
        if hooks.each_step:
            hooks.each_step(step)
        if session.place.name == "cuda":
            torch.cuda.synchronize()  # the host queues steps ahead of the device
        stamps.append(time.perf_counter())

    trainer = dataclasses.replace(
        session.spec.trainer, **DISABLED_OPTIONS, max_steps=WARMUP_STEPS + steps, logging_steps=WARMUP_STEPS + steps
    )
    short = dataclasses.replace(session, spec=dataclasses.replace(session.spec, trainer=trainer), checkpoint=None)
    with start.use_reference(session, model):
        fitted = training_session.fit(short, model, fit.MethodHooks(hooks.optimizer, each_step))
    seconds = (stamps[-1] - stamps[WARMUP_STEPS - 1]) / steps
    row_tokens, step_tokens = lengths.list_lengths(session.rows), fitted.tokens / fitted.steps
    if not row_tokens or not step_tokens or trainer.packing:
        return seconds  # the loop does not count tokens, or packing fills every row to the same length
    mean_step_tokens = (
        sum(row_tokens) / len(row_tokens) * trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps
    )
    return seconds * (mean_step_tokens / step_tokens)
