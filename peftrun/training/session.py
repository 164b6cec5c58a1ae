"""The steps of one training run, alone or as a cell of a joint run, in the order in which they are taken:

`prepare_session` → `evaluate` (before) → `fit` → `evaluate` (after) → the caller saves → `session_result`.
"""

import dataclasses
import math
import random
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, set_seed

from peftrun import console, tasks
from peftrun.adapters import attach, optimizers, reference, traits
from peftrun.artifacts import adapter_folder, classifier_head, lineage, reference_adapter
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.checks import methods as method_checks
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.lora import NoAdapter
from peftrun.config.schema.run import RunSpec
from peftrun.data import input_digests
from peftrun.errors import ConfigError, DataError
from peftrun.formatting import format_metrics
from peftrun.models import base_cache, device, placement
from peftrun.models.base import LoadedBase
from peftrun.models.device import Device
from peftrun.tasks import own_functions, row_view, seq2seq
from peftrun.trackers import lifecycle
from peftrun.training import (
    checkpoints,
    cpu_attention,
    distributed,
    epochs,
    sample_generations,
    uploads,
    validation_metrics,
)
from peftrun.training import fit as loop


@dataclass
class TrainingSession:
    """What the steps of one training run share.

    Attributes:
        checkpoint: the checkpoint to resume from; None: train from the first step.
        task_module: `peftrun.tasks.…`, the module of the task type.
        name: title of a sweep cell in messages; empty for a run of its own.
        timings: step → seconds.
        details: "before" and "after" → what a task reports beside its metrics, such as a confusion matrix.
        generations: "before" and "after" → generated texts, one a sample row.
        digests: hashes of the files, rows, base model and parent that the training is made from.
        parent: the adapter that is trained further; None: a fresh one is trained.
    """

    spec: RunSpec
    out_dir: Path
    checkpoint: Path | None
    place: Device
    base: LoadedBase
    task_module: ModuleType
    rows: Any
    name: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    generations: dict[str, list[str]] = field(default_factory=dict)
    digests: dict[str, str] = field(init=False)
    parent: AdapterRef | None = field(init=False)

    def __post_init__(self) -> None:
        """Raises: ConfigError: the checkpoint to resume from was trained on other rows, or on another base model."""
        self.parent = next(iter(adapter_folder.resolve_adapters(self.spec.adapter).values()), None)
        self.digests = input_digests.compute_digests(self.spec) | {input_digests.ROWS: self.rows.digest}
        if self.checkpoint is not None:
            checkpoints.check_inputs(self.checkpoint, self.digests, str(getattr(self.spec.action, "resume", None)))


# --- prepare ---


def prepare_session(spec: RunSpec, out_dir: Path) -> TrainingSession:
    """A session with its device resolved, random state seeded, base model and rows loaded.

    Raises: PeftrunError: a problem with the base model, the rows, or the run to resume.
    """
    assert isinstance(spec.action, TrainAction)
    run_device = device.resolve_device(spec.device)
    distributed.init_process_group(run_device.name)
    # Free memory differs between processes, so one of them chooses the dtype for all.
    run_device = distributed.broadcast_from_main(lambda: placement.fit_device(run_device, spec))
    with checkpoints.remove_copies_on_error(out_dir):
        checkpoint = resume_checkpoint(spec, out_dir)
        if distributed.is_main_process():
            lifecycle.start_run_tracker(spec, out_dir, checkpoints.get_step(checkpoint) if checkpoint else 0)
            uploads.start_uploads(spec, out_dir)
        set_seed(spec.seed)
        console.print_info(run_device.note)
        tasks.check_data_columns(spec.task)
        own_functions.load_functions(spec.task)
        base = base_cache.load_cached_base(
            spec.model, run_device, choose_dtype(spec), classifier_head.get_task_head(spec.task)
        )
        session = TrainingSession(
            spec, out_dir, checkpoint, run_device, base, tasks.import_task_module(spec.task.type), load_rows(spec, base)
        )
        if distributed.is_main_process():
            write_first_rows(session)
    return session


def resume_checkpoint(spec: RunSpec, out_dir: Path) -> Path | None:
    """The checkpoint to resume from, copied into this run's folder; None: train from the first step."""
    assert isinstance(spec.action, TrainAction)
    resume = spec.action.resume
    if resume is None:
        return None
    with distributed.main_process_first():
        return (
            checkpoints.copy_checkpoint(spec, resume, out_dir)
            if distributed.is_main_process()
            else checkpoints.find_last_complete(out_dir)
        )


def choose_dtype(spec: RunSpec) -> torch.dtype | None:
    """The dtype of the weights, where it is not the device's: full fine-tuning uses float32 unless the config names a dtype.

    bfloat16 has 8 bits of mantissa: it rounds away an update that is small beside its weight.
    """
    if not isinstance(spec.lora, NoAdapter) or spec.device.dtype != "auto":
        return None
    console.print_info("lora=none: every weight is trained, in float32 (device.dtype=bfloat16 to choose otherwise)")
    return torch.float32


def load_rows(spec: RunSpec, base: LoadedBase) -> Any:
    """The task's rows. Raises: DataError: see `tasks.load_task_rows`; or too few of them are left to train on."""
    rows = tasks.load_task_rows(spec.task, base, method_checks.virtual_tokens(spec.lora))
    tasks.check_enough_rows(rows, spec.task)
    console.print_info(f"data: {len(rows.train)} training rows, {len(rows.held_out)} evaluation rows")
    count = len(rows.train) - (spec.task.data.num_validation_rows or 0)
    for line in (epochs.describe_coverage(spec, count), epochs.describe_unseen_rows(spec, count)):
        if line:
            console.print_info(line)
    return rows


def write_first_rows(session: TrainingSession) -> None:
    """Writes the first rows, as they will be trained on, into the run folder."""
    row_view.write_first_rows(session.rows, session.spec.task, session.base.tokenizer, session.out_dir)


# --- evaluate ---


def evaluate(session: TrainingSession, model: Any, when: str) -> dict[str, float]:
    """Metrics on the evaluation rows, "before" or "after" training; empty in all processes but the main one.

    Raises: DataError: the loss is not a finite number.
    """
    if not distributed.is_main_process():
        return {}
    metrics = _measure(session, model, when)
    # Before training it is the base model or the parent that is evaluated, once for all cells of a joint run.
    prefix = f"{session.name}: " if session.name and when == "after" else ""
    model_name = f" (adapter {session.parent.path})" if session.parent and when == "before" else ""
    console.print_info(f"{prefix}evaluation {when} training{model_name}: {format_metrics(metrics)}")
    if not math.isfinite(metrics["loss"]):
        where = f" at {_find_first_nan_row(session, model)}" if when == "before" else ""
        raise DataError(
            f"the evaluation loss {when} training is {metrics['loss']}{where}, so nothing was saved; "
            "lower trainer.learning_rate, or type device.dtype=float32"
        )
    if when == "before":
        validation_metrics.check_best_metric(session.spec, metrics)
    _generate_samples(session, model, when)
    return metrics


def _measure(session: TrainingSession, model: Any, when: str) -> dict[str, float]:
    started = time.perf_counter()
    rows, task, tokenizer = session.rows.held_out, session.spec.task, session.base.tokenizer
    batch_size = session.spec.trainer.per_device_eval_batch_size
    console.set_activity(f"evaluating {len(rows)} rows {when} training")
    metrics: dict[str, float]
    if hasattr(session.task_module, "evaluate_in_detail"):
        metrics, session.details[when] = session.task_module.evaluate_in_detail(
            model, tokenizer, rows, batch_size, task
        )
    else:
        metrics = session.task_module.evaluate(model, tokenizer, rows, batch_size, task)
    session.timings[f"evaluate_{when}_seconds"] = round(time.perf_counter() - started, 2)
    return metrics


def _find_first_nan_row(session: TrainingSession, model: Any) -> str:
    """Where the first evaluation row comes from whose loss alone is not finite."""
    loss_only = dataclasses.replace(session.spec.task, metrics=None)
    for row in session.rows.held_out:
        metrics = session.task_module.evaluate(model, session.base.tokenizer, [row], 1, loss_only)
        if not math.isfinite(metrics["loss"]):
            return str(row.where)
    return "no row alone"


def _generate_samples(session: TrainingSession, model: Any, when: str) -> None:
    samples = choose_sample_rows(session)
    if not samples:
        return
    started = time.perf_counter()
    max_new_tokens = sample_generations.compute_max_new_tokens(samples, session.spec.task)
    session.generations[when] = sample_generations.generate_samples(
        model, session.base.tokenizer, samples, session.spec.trainer.per_device_eval_batch_size, max_new_tokens
    )
    session.timings[f"samples_{when}_seconds"] = round(time.perf_counter() - started, 2)


def choose_sample_rows(session: TrainingSession) -> list[sample_generations.SampleRow]:
    """Evaluation rows to generate answers to; none for a classifier or a reward model, which generates no text."""
    assert isinstance(session.spec.action, TrainAction)
    if session.base.head:
        return []
    return sample_generations.choose_rows(session.rows.held_out, session.spec.action.num_samples)


# --- fit ---


def build_init_data(session: TrainingSession) -> attach.InitData:
    """What initializing an adapter may need of the training ahead: its number of steps, and calibration batches if the
    method looks at rows."""
    trainer = session.spec.trainer
    rows = session.rows.build_training_rows()[session.spec.task.data.num_validation_rows or 0 :]
    steps = loop.count_steps(trainer, len(rows))
    if not attach.needs_calibration_data(session.spec.lora):
        return attach.InitData([], steps)
    count, batch_size = getattr(session.spec.lora, "calibration_rows", 0), trainer.per_device_train_batch_size
    chosen = random.Random(session.spec.seed).sample(rows, min(count, len(rows)))
    tokenizer = session.base.tokenizer
    collate = session.task_module.collator(tokenizer) if session.base.head else DataCollatorForSeq2Seq(tokenizer)
    batches = [collate(chosen[begin : begin + batch_size]) for begin in range(0, len(chosen), batch_size)]
    model_device = session.base.model.device
    return attach.InitData([{key: value.to(model_device) for key, value in batch.items()} for batch in batches], steps)


def build_hooks(session: TrainingSession, model: Any) -> loop.MethodHooks:
    """The optimizer and the step hook that the adapter's method brings to the training loop."""
    lora, weight_decay = session.spec.lora, session.spec.trainer.weight_decay
    step_hook = attach.get_step_hook(model)
    if not optimizers.needs_own_optimizer(
        lora
    ):  # asking transformers for its own would already attach some to the model
        return loop.MethodHooks(None, step_hook)
    return loop.MethodHooks(
        lambda optimizer_class, kwargs: optimizers.build_optimizer(model, lora, optimizer_class, kwargs, weight_decay),
        step_hook,
    )


def uses_eager_attention(session: TrainingSession) -> bool:
    """Whether this training is faster with eager attention than with the one used for evaluation."""
    return cpu_attention.is_eager_faster(session.base.spec, session.spec.task, session.spec.trainer, session.place)


def fit(session: TrainingSession, model: Any, hooks: loop.MethodHooks = loop.NO_HOOKS) -> loop.FitResult:
    """Trains `model` in place; steps, losses and seconds. See `peftrun.training.fit.fit`."""
    with cpu_attention.use_eager_attention(session.base.model, uses_eager_attention(session)):
        measure = validation_metrics.build_measure(session, model, nullcontext, uses_eager_attention(session))
        return _run_fit(session, model, measure, method=hooks)


def fit_cell(session: TrainingSession, parameters: Any, measure: Any, maker: loop.TrainerFactory) -> loop.FitResult:
    """The same for one cell of a joint run: the base model is shared, `parameters` has only the cell's own."""
    return _run_fit(session, parameters, measure, maker=maker)


def _run_fit(session: TrainingSession, model: Any, measure: Any, **options: Any) -> loop.FitResult:
    if session.spec.trainer.max_steps == 0:
        return loop.FitResult(0, 0.0, 0.0, 0)
    data = dataclasses.replace(build_training_data(session, model), measure=measure)
    fitted = loop.fit(
        model, data, session.spec.trainer, session.place, session.out_dir, checkpoint=session.checkpoint, **options
    )
    session.timings["train_seconds"] = round(fitted.seconds, 2)
    return fitted


def build_training_data(session: TrainingSession, model: Any) -> loop.TrainingData:
    """The rows that `model` is trained and validated on; the first `task.data.num_validation_rows` rows are for validation."""
    rows, num_validation = session.rows.build_training_rows(), session.spec.task.data.num_validation_rows or 0
    return loop.TrainingData(
        rows[num_validation:],
        [row.where for row in session.rows.train[num_validation:]],
        session.base.tokenizer,
        session.spec.seed,
        session.spec.task.max_length,
        _build_collator(session, model),
        session.spec.task.objective,
        rows[:num_validation],
        digests=session.digests,
    )


def _build_collator(session: TrainingSession, model: Any) -> Any:
    """The collator of the task; None: TRL's own for causal language models.

    TRL's loop computes logits from the hidden states and the output layer's weight, so that an adapter on the output layer
    would be left out: such a model is trained by transformers' Trainer instead.
    """
    if session.spec.task.type == "seq2seq":
        return seq2seq.collator(session.base.tokenizer, session.base.model)
    if hasattr(session.task_module, "collator"):
        return session.task_module.collator(session.base.tokenizer)
    if session.spec.task.objective is not None or not traits.adapts_output_layer(model):
        return None
    if session.spec.trainer.packing:
        raise ConfigError(
            "trainer.packing=true: cannot be used where the output layer is adapted; type trainer.packing=false"
        )
    return DataCollatorForSeq2Seq(session.base.tokenizer)


def describe_parent(session: TrainingSession) -> dict[str, Any]:
    """The adapter that the training started from and its ancestors, and the reference model, for record.json and peftrun.json."""
    about = reference_adapter.describe_reference(choose_reference(session), session.parent)
    return about | ({"parent": lineage.describe_parent(session.parent)} if session.parent else {})


def choose_reference(session: TrainingSession) -> str | None:
    """`parent` or `base`; None: the objective has no reference model."""
    return reference.choose_reference(session.spec.task.objective, session.parent is not None)
