"""What every training shares, alone or in company: base, rows, measuring before and after, what is told at the end."""

import dataclasses
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, set_seed

from peftrun import console, tasks
from peftrun.adapters import attach, optimizers, traits
from peftrun.artifacts import classifier_head
from peftrun.artifacts.run_layout import ADAPTER, RECORD
from peftrun.checks import methods as method_checks
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.lora import NoAdapter
from peftrun.config.schema.run import RunSpec
from peftrun.console import format_figures, format_megabytes, shorten_path
from peftrun.data import input_digests
from peftrun.errors import ConfigError, DataError
from peftrun.io import atomic_files
from peftrun.models import base_cache, device, placement
from peftrun.models.base import LoadedBase
from peftrun.models.device import Device
from peftrun.result import RunResult
from peftrun.system import memory
from peftrun.tasks import row_view, seq2seq
from peftrun.trackers import lifecycle
from peftrun.training import checkpoints, cpu_attention, distributed, epochs, lengths, sample_generations
from peftrun.training import fit as loop


@dataclass
class TrainingSession:
    """What the steps of one training share."""

    spec: RunSpec
    out_dir: Path
    checkpoint: Path | None
    place: Device
    base: LoadedBase
    kind: ModuleType
    rows: Any
    name: str = ""  # of a cell among others, in what is said
    timings: dict[str, float] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)  # before, after → what belongs to the figures
    answered: dict[str, list[str]] = field(default_factory=dict)  # before, after → answers to sample rows
    inputs: dict[str, str] = field(init=False)  # digests of what it is made from

    def __post_init__(self) -> None:
        """Raises: ConfigError: the checkpoint to go on from is of other rows, or of another base."""
        self.inputs = input_digests.compute_digests(self.spec) | {input_digests.ROWS: self.rows.digest}
        if self.checkpoint is not None:
            checkpoints.check_inputs(self.checkpoint, self.inputs, str(getattr(self.spec.action, "resume", None)))


def prepare_session(spec: RunSpec, out_dir: Path) -> TrainingSession:
    """A training about to begin: its device resolved, seeded, base and rows there.

    Raises: PeftrunError: whatever is at fault with base, rows, or the run to be continued.
    """
    assert isinstance(spec.action, TrainAction)
    place = device.resolve_device(spec.device)
    distributed.init_process_group(place.name)
    place = distributed.broadcast_from_main(lambda: placement.fit_device(place, spec))
    with checkpoints.taken_back(out_dir):
        checkpoint = resume_checkpoint(spec, out_dir)
        if distributed.is_main_process():
            lifecycle.start_run_tracker(spec, out_dir, checkpoints.get_step(checkpoint) if checkpoint else 0)
        set_seed(spec.seed)
        console.print_info(place.note)
        tasks.check_data_columns(spec.task)
        base = base_cache.load_cached_base(
            spec.model, place, choose_dtype(spec), classifier_head.get_task_head(spec.task)
        )
        job = TrainingSession(
            spec, out_dir, checkpoint, place, base, tasks.import_task_module(spec.task.kind), load_rows(spec, base)
        )
        if distributed.is_main_process():
            write_first_rows(job)
    return job


def write_first_rows(job: TrainingSession) -> None:
    """Shows the first rows in the run folder as they will be learned."""
    row_view.write_first_rows(job.rows, job.spec.task, job.base.tokenizer, job.out_dir)


def load_rows(spec: RunSpec, base: LoadedBase) -> Any:
    """The task's rows. Raises: DataError: see `tasks.load`; or too few of them are left to learn from."""
    rows = tasks.load_task_rows(spec.task, base, method_checks.virtual_tokens(spec.lora))
    tasks.check_enough_rows(rows, spec.task)
    console.print_info(f"data: {len(rows.train)} training rows, {len(rows.held_out)} held out")
    count = len(rows.train) - (spec.task.data.validation_rows or 0)
    for line in (epochs.describe_coverage(spec, count), epochs.describe_unseen_rows(spec, count)):
        if line:
            console.print_info(line)
    return rows


def resume_checkpoint(spec: RunSpec, out_dir: Path) -> Path | None:
    """The checkpoint to go on from, copied into this run's folder; None: from the first step."""
    assert isinstance(spec.action, TrainAction)
    asked = spec.action.resume
    if asked is None:
        return None
    with distributed.main_process_first():
        return (
            checkpoints.copy_checkpoint(spec, asked, out_dir)
            if distributed.is_main_process()
            else checkpoints.find_last_complete(out_dir)
        )


def choose_dtype(spec: RunSpec) -> torch.dtype | None:
    """Full fine-tuning updates the weights themselves, and bfloat16 rounds small updates away: float32 unless asked otherwise."""
    if not isinstance(spec.lora, NoAdapter) or spec.device.dtype != "auto":
        return None
    console.print_info("lora=none: every weight is trained, in float32 (device.dtype=bfloat16 to choose otherwise)")
    return torch.float32


def evaluate(job: TrainingSession, net: Any, when: str) -> dict[str, float]:
    """What is measured on the held-out rows. Raises: DataError: their loss is no finite number."""
    if not distributed.is_main_process():
        return {}
    started = time.perf_counter()
    batch_size, task = job.spec.trainer.per_device_eval_batch_size, job.spec.task
    given = (net, job.base.tokenizer, job.rows.held_out, batch_size, task)
    console.set_activity(f"measuring {len(job.rows.held_out)} held-out rows {when} training")
    found: dict[str, float]
    if hasattr(job.kind, "detailed"):
        found, job.details[when] = job.kind.detailed(*given)
    else:
        found = job.kind.evaluate(*given)
    job.timings[f"evaluate_{when}_seconds"] = round(time.perf_counter() - started, 2)
    who = f"{job.name}: " if job.name and when == "after" else ""  # before, it is the base, for all cells
    console.print_info(f"{who}held-out {when}: {format_figures(found)}")
    if not math.isfinite(found["loss"]):
        who = f" at {_find_first_nan_row(job, net)}" if when == "before" else ""
        raise DataError(
            f"the held-out loss {when} training is {found['loss']}{who}, so nothing was saved; "
            "lower trainer.learning_rate, or type device.dtype=float32"
        )
    _generate_samples(job, net, when)
    return found


def _generate_samples(job: TrainingSession, net: Any, when: str) -> None:
    """Answers to some held-out rows, for the report."""
    asked, tokenizer = _choose_sample_rows(job), job.base.tokenizer
    if not asked:
        return
    started, most = time.perf_counter(), sample_generations.compute_max_new_tokens(asked, job.spec.task)
    size = job.spec.trainer.per_device_eval_batch_size
    job.answered[when] = sample_generations.generate_samples(net, tokenizer, asked, size, most)
    job.timings[f"samples_{when}_seconds"] = round(time.perf_counter() - started, 2)


def _choose_sample_rows(job: TrainingSession) -> list[sample_generations.SampleRow]:
    """None of a classifier or a reward model, which writes nothing."""
    assert isinstance(job.spec.action, TrainAction)
    return [] if job.base.head else sample_generations.choose_rows(job.rows.held_out, job.spec.action.samples)


def _collect_details(job: TrainingSession) -> dict[str, Any]:
    """Beside the figures: answers to sample rows, and what a classifier took for what."""
    names = dict.fromkeys(name for found in job.details.values() for name in found)
    found: dict[str, Any] = {name: {when: one[name] for when, one in job.details.items()} for name in names}
    if job.answered:
        asked = _choose_sample_rows(job)
        most = sample_generations.compute_max_new_tokens(asked, job.spec.task)
        found["samples"] = sample_generations.format_samples(asked, job.base.tokenizer, job.answered, most)
    return found


def _find_first_nan_row(job: TrainingSession, net: Any) -> str:
    """Where the first held-out row comes from on which the loss is no finite number."""
    alone = dataclasses.replace(job.spec.task, metrics=None)
    each = ((row.where, job.kind.evaluate(net, job.base.tokenizer, [row], 1, alone)) for row in job.rows.held_out)
    return next((where for where, one in each if not math.isfinite(one["loss"])), "no row alone")


def build_init_data(job: TrainingSession) -> attach.InitData:
    """What a method may ask of the training ahead; its rows only where it looks at them."""
    rows, trainer = job.rows.build_training_rows()[job.spec.task.data.validation_rows or 0 :], job.spec.trainer
    steps = loop.count_steps(trainer, len(rows))
    if not attach.needs_calibration_data(job.spec.lora):
        return attach.InitData([], steps)
    wanted, size = getattr(job.spec.lora, "calibration_rows", 0), trainer.per_device_train_batch_size
    chosen = random.Random(job.spec.seed).sample(rows, min(wanted, len(rows)))
    collate = job.kind.collator(job.base.tokenizer) if job.base.head else DataCollatorForSeq2Seq(job.base.tokenizer)
    batches = [collate(chosen[begin : begin + size]) for begin in range(0, len(chosen), size)]
    place = job.base.model.device
    return attach.InitData([{key: value.to(place) for key, value in batch.items()} for batch in batches], steps)


def _build_collator(job: TrainingSession, net: Any) -> Any:
    """None: TRL's own for language models, whose loss passes by an output layer that is adapted."""
    if job.spec.task.kind == "seq2seq":
        return seq2seq.collator(job.base.tokenizer, job.base.model)
    if hasattr(job.kind, "collator"):
        return job.kind.collator(job.base.tokenizer)
    if job.spec.task.objective is not None or not traits.adapts_output_layer(net):
        return None
    if job.spec.trainer.packing:
        raise ConfigError(
            "trainer.packing=true: cannot be used where the output layer is adapted; type trainer.packing=false"
        )
    return DataCollatorForSeq2Seq(job.base.tokenizer)


def build_hooks(job: TrainingSession, net: Any) -> loop.MethodHooks:
    """What the adapter's method asks of the loop."""
    lora, decay = job.spec.lora, job.spec.trainer.weight_decay
    return loop.MethodHooks(
        lambda made_by, given: optimizers.build_optimizer(net, lora, made_by, given, decay), attach.get_step_hook(net)
    )


def build_training_data(job: TrainingSession, net: Any) -> loop.TrainingData:
    """What `net` is to learn."""
    rows, apart = job.rows.build_training_rows(), job.spec.task.data.validation_rows or 0
    return loop.TrainingData(
        rows[apart:],
        [row.where for row in job.rows.train[apart:]],
        job.base.tokenizer,
        job.spec.seed,
        job.spec.task.max_length,
        _build_collator(job, net),
        job.spec.task.objective,
        rows[:apart],
        job.inputs,
    )


def uses_eager_attention(job: TrainingSession) -> bool:
    """Whether this training is faster with another kind of attention than what comes before and after."""
    return cpu_attention.is_eager_faster(job.base.spec, job.spec.task, job.spec.trainer, job.place)


def fit(job: TrainingSession, net: Any, how: loop.MethodHooks = loop.NO_HOOKS) -> loop.FitResult:
    """Trains `net` in place; how it went. See `loop.fit`."""
    with cpu_attention.use_eager_attention(job.base.model, uses_eager_attention(job)):
        return _run_fit(job, net, method=how)


def fit_cell(job: TrainingSession, own: Any, maker: loop.TrainerFactory) -> loop.FitResult:
    """The same for a cell among others, whose base is not its own."""
    return _run_fit(job, own, maker=maker)


def _run_fit(job: TrainingSession, net: Any, **how: Any) -> loop.FitResult:
    what = build_training_data(job, net)
    fitted = loop.fit(net, what, job.spec.trainer, job.place, job.out_dir, checkpoint=job.checkpoint, **how)
    job.timings["train_seconds"] = round(fitted.seconds, 2)
    return fitted


def build_result(
    job: TrainingSession,
    fitted: loop.FitResult,
    before: dict[str, float],
    after: dict[str, float],
    counts: tuple[int, int],
) -> RunResult:
    """What the run found; `counts`: trainable parameters, and all."""
    longest = lengths.find_longest(job.rows, job.spec)
    facts = {
        "base": job.base.describe(),
        "device": job.place.note,
        "data": job.rows.describe(),
        "input_digests": job.inputs,
        "resumed_from": str(job.checkpoint) if job.checkpoint else None,
        "training": fitted.as_dict(),
        "timings": job.timings,
        "memory": memory.measure_peak_memory(),
        "lengths": dataclasses.asdict(longest) if longest else None,
        **_collect_details(job),
        "trainable_parameters": counts[0],
        "parameters": counts[1],
    }
    summary = [
        ("base", f"{job.base.name} ({job.base.fingerprint.short()})"),
        ("trainable", f"{counts[0]:,} of {counts[1]:,} parameters ({counts[0] / counts[1]:.2%})"),
        ("training", f"{fitted.steps} steps in {fitted.seconds:.0f} s, mean loss {fitted.train_loss:.4f}"),
        *_summarize_coverage(job, fitted.steps),
        *((name, f"{before[name]:.4f} → {value:.4f}" if before else f"{value:.4f}") for name, value in after.items()),
        ("record", shorten_path(job.out_dir / RECORD)),
    ]
    metrics = {"before": before, "after": after}
    return RunResult(job.out_dir, facts, metrics, summary=summary, objective=after.get("loss"))


def _summarize_coverage(job: TrainingSession, steps: int) -> list[tuple[str, str]]:
    found = epochs.describe_coverage(job.spec, len(job.rows.train) - (job.spec.task.data.validation_rows or 0), steps)
    return [("learned", found)] if found else []


def add_artifacts(job: TrainingSession, found: RunResult) -> RunResult:
    """The same result with the adapter that was saved, and what to type next."""
    target, here = job.out_dir / ADAPTER, shorten_path(job.out_dir)
    size, base_size = atomic_files.measure_size(target), job.base.size()
    found.artifacts = [target]
    found.facts["size"] = {"adapter_bytes": size, "base_bytes": base_size}
    found.summary.append(
        (
            "adapter",
            f"{format_megabytes(size)}, {size / base_size:.2%} of the base's {format_megabytes(base_size)}: {shorten_path(target)}",
        )
    )
    found.next_commands = [
        f"peftrun action=reload adapter={here}",
        *([] if job.base.head else [f"peftrun action=generate adapter={here} 'action.prompt=\"…\"'"]),
        f"peftrun action=merge adapter={here}",
    ]
    return found
