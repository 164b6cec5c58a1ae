"""Estimate parameters, memory, steps and time of a training before it starts. The plan of a sweep is made by its launcher.

Estimates from files import no torch; the time needs a few steps on the real base model (`action.measure_steps`).
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts import base_files
from peftrun.checks import cross_group
from peftrun.config.schema.actions import PlanAction, TrainAction
from peftrun.config.schema.run import RunSpec
from peftrun.formatting import format_rough_duration
from peftrun.planning import memory, memory_fit, parameter_count, throughput
from peftrun.planning.memory import MemoryEstimate
from peftrun.result import RunResult
from peftrun.runs import execute, torchrun
from peftrun.system import free_memory
from peftrun.system.sizes import format_gigabytes


@dataclass(frozen=True)
class _TrainingPlan:
    """What one training takes. None: not known from files.

    Attributes:
        count: trained parameters, all parameters, and whether the numbers are exact.
        free: bytes of memory that one process may use.
        rows: number of training rows.
        seconds: part of the run → seconds.
        measured: what `training.measure_steps` returns, if steps were measured.
    """

    count: tuple[int, int, bool] | None
    memory: MemoryEstimate | None
    free: int | None
    rows: int | None
    seconds: dict[str, float]
    measured: Any
    notes: list[str]


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Plans the same command with action=train, as a summary and in the record.

    Raises: ConfigError: training would refuse the config. PeftrunError: the measured steps failed as training would.
    """
    action = spec.action
    assert isinstance(action, PlanAction)
    training_spec = cross_group.as_training(
        spec, TrainAction("train", action.resume, action.evaluate_before, action.num_samples)
    )
    # On a GPU only torch can tell how much memory is free; the estimate then says nothing of whether the run fits.
    on_gpu = base_files.uses_gpu(training_spec.device)
    free_bytes = None if on_gpu else free_memory.get_available_memory().bytes // training_spec.device.num_processes
    training_spec, shortage = _resolve_dtype(training_spec)
    plan = _plan_from_files(training_spec, free_bytes)
    # Measuring loads the base model, so it is skipped if the estimate already says that memory will not suffice.
    if action.measure_steps and not _explain_memory_shortage(training_spec, plan):
        plan = _plan_from_steps(
            _restrict_to_one_process(training_spec), training_spec, action.measure_steps, free_bytes
        )
    if shortage:
        plan.notes.append(f"device.dtype=auto is bfloat16 here: float32 would take {shortage}")
    return RunResult(
        out_dir, {"plan": _build_facts(training_spec, plan)}, summary=list(_build_summary(training_spec, plan))
    )


def _resolve_dtype(spec: RunSpec) -> tuple[RunSpec, str | None]:
    """The spec with `device.dtype=auto` resolved; and the memory that float32 would take, where bfloat16 was chosen instead."""
    base = None if base_files.uses_gpu(spec.device) else base_files.read_base_info(spec.model)
    if base is None:
        return spec, None
    return memory_fit.choose_load_dtype(base, spec, memory_fit.measure_headroom(spec.device.num_processes))


def _restrict_to_one_process(spec: RunSpec) -> RunSpec:
    """The share of one process, to be measured alone; starts from step 0 even if the run would be resumed."""
    device = spec.device
    threads = torchrun.share_cpus(device.num_processes) if device.num_processes > 1 else None
    single = dataclasses.replace(
        device,
        strategy=None,
        num_processes=1,
        num_machines=1,
        machine_rank=0,
        num_threads=device.num_threads or threads,
    )
    assert isinstance(spec.action, TrainAction)
    return dataclasses.replace(spec, device=single, action=dataclasses.replace(spec.action, resume=None))


def _plan_from_files(spec: RunSpec, free: int | None) -> _TrainingPlan:
    base = base_files.read_base_info(spec.model)
    history = throughput.read_throughputs([spec])
    seconds, lengths, notes = history.seconds(spec), history.lengths(spec), history.notes([spec])
    # Recorded times are of one process; data parallelism divides the steps, not the time of a step.
    times = {} if seconds is None else {"training": seconds / _count_processes(spec)}
    if base is None:
        notes = [
            f"memory: unknown for {base_files.format_base_name(spec.model)}, whose files are not downloaded yet",
            *notes,
        ]
        return _TrainingPlan(None, None, free, spec.task.data.num_train_rows, times, None, notes)
    parameters = parameter_count.estimate_parameters(base, spec.lora, spec.task)
    count = (parameters.trained, base.parameters + parameters.held, parameters.exact)
    if lengths:
        notes = [f"memory: rows of at most {lengths.longest} tokens, as in an earlier run on this data", *notes]
    return _TrainingPlan(
        count, memory.estimate_memory(base, spec, lengths), free, spec.task.data.num_train_rows, times, None, notes
    )


def _plan_from_steps(single_spec: RunSpec, spec: RunSpec, steps: int, free: int | None) -> _TrainingPlan:
    started = time.perf_counter()
    measure = execute.import_quietly("peftrun.training.measure_steps")
    importing = time.perf_counter() - started  # seconds; several of them, which a real run spends too
    measured = measure.measure_training(single_spec, steps)
    base = base_files.read_base_info(spec.model)
    estimate = None if base is None else memory.estimate_memory(base, spec, measured.lengths)
    return _TrainingPlan(
        (measured.trained, measured.parameters, True),
        estimate,
        free,
        measured.rows,
        _estimate_seconds(spec, measured, importing),
        measured,
        [],
    )


def _estimate_seconds(spec: RunSpec, measured: Any, importing: float) -> dict[str, float]:
    """Part of the whole run → seconds. Times of a step and of a row are scaled to the numbers of the whole run."""
    trainer = spec.trainer
    steps = throughput.count_optimizer_steps(trainer, measured.rows, _count_processes(spec)) or 0
    validations = {"steps": steps // trainer.eval_steps, "epoch": round(trainer.num_train_epochs)}.get(
        trainer.eval_strategy, 0
    )
    before, after = measured.evaluating  # seconds per evaluation row, before and after training
    return {
        "start": importing + measured.starting,
        "before": before * measured.held_out,
        "training": measured.step * steps + validations * measured.validation * after,
        "after": after * measured.held_out,
    }


def _count_processes(spec: RunSpec) -> int:
    return spec.device.num_processes * spec.device.num_machines


def _explain_memory_shortage(spec: RunSpec, plan: _TrainingPlan) -> str | None:
    """Why the run will not fit in memory, and what to type; None: it fits, or that is not known."""
    if plan.memory is None or plan.free is None or plan.memory.peak <= plan.free:
        return None
    base = base_files.read_base_info(spec.model)
    overrides = memory_fit.suggest_overrides(base, spec, memory_fit.build_headroom(plan.free)) if base else []
    advice = f"type {' or '.join(overrides)}" if overrides else "choose a smaller model, or a machine with more memory"
    return f"will not fit: {format_gigabytes(plan.memory.peak)} of {format_gigabytes(plan.free)} free; {advice}"


def _build_facts(spec: RunSpec, plan: _TrainingPlan) -> dict[str, Any]:
    names = ("trained", "parameters", "exact")
    return {
        **(dict(zip(names, plan.count, strict=True)) if plan.count else {}),
        "memory": plan.memory.as_dict() if plan.memory else None,
        "free": plan.free,
        "processes": _count_processes(spec),
        "rows": plan.rows,
        "steps": throughput.count_optimizer_steps(spec.trainer, plan.rows, _count_processes(spec)),
        "seconds": round(sum(plan.seconds.values()), 1) if plan.seconds else None,
        "parts": {key: round(value, 1) for key, value in plan.seconds.items()},
        "measured": dataclasses.asdict(plan.measured) if plan.measured else None,
    }


def _build_summary(spec: RunSpec, plan: _TrainingPlan) -> Any:
    yield "trained", _format_parameters(plan)
    yield "memory", _format_memory(spec, plan)
    fits = "not known whether it fits"
    if plan.memory is not None and plan.free is not None:
        fits = f"fits: {format_gigabytes(plan.free)} are free"
    yield "machine", _explain_memory_shortage(spec, plan) or fits
    yield "steps", _format_steps(spec, plan)
    yield "time", _format_time(spec, plan)
    if plan.measured:
        yield "measured", f"{plan.measured.step:.2f} s a step, peak {format_gigabytes(plan.measured.peak)}"
    for note in [*plan.notes, *_build_notes(spec)]:
        yield "note", note


def _format_parameters(plan: _TrainingPlan) -> str:
    if plan.count is None:
        return "unknown"
    trained, parameters, exact = plan.count
    return f"{'' if exact else 'about '}{trained:,} of {parameters:,} parameters ({trained / parameters:.2%})"


def _format_memory(spec: RunSpec, plan: _TrainingPlan) -> str:
    estimate = plan.memory
    if estimate is None:
        return "unknown"
    parts = {
        "weights": estimate.weights, "adapter": estimate.adapter, "gradients and optimizer": estimate.learning,
        "activations": estimate.activations, "logits": estimate.logits, "process": estimate.process,
    }  # fmt: skip
    # The peak may come from evaluation, whose part is what it adds to training.
    parts["evaluation"] = estimate.peak - sum(parts.values())
    shown = ", ".join(
        f"{name} {value / 1e9:.2f}" for name, value in parts.items() if value >= 5e6
    )  # GB, none below 5 MB
    per_process = f" for each of {spec.device.num_processes} processes" if spec.device.num_processes > 1 else ""
    if estimate.peak == estimate.loading:
        return f"about {format_gigabytes(estimate.peak)}{per_process}, while the base model is loaded; then {shown}"
    return f"about {format_gigabytes(estimate.peak)}{per_process}: {shown}"


def _format_steps(spec: RunSpec, plan: _TrainingPlan) -> str:
    trainer, processes = spec.trainer, _count_processes(spec)
    steps, size = (
        throughput.count_optimizer_steps(trainer, plan.rows, processes),
        throughput.count_step_rows(trainer, processes),
    )
    if steps is None:
        return f"unknown until rows are counted; {size} rows a step"
    return throughput.format_rows_seen(steps, size, plan.rows)


def _format_time(spec: RunSpec, plan: _TrainingPlan) -> str:
    if not plan.seconds:
        return "unknown"
    total = format_rough_duration(sum(plan.seconds.values()))
    if plan.measured is None:
        return f"about {total} of training"
    words = {"start": "start", "before": "evaluation before", "training": "training", "after": "evaluation after"}
    return f"about {total}: " + ", ".join(
        f"{words[key]} {format_rough_duration(value)}" for key, value in plan.seconds.items() if value
    )


def _build_notes(spec: RunSpec) -> Any:
    assert isinstance(spec.action, TrainAction)
    if spec.action.resume:
        yield "for the whole training; a resumed one takes only the remaining steps"
    if spec.device.strategy in ("fsdp", "deepspeed"):
        yield f"device.strategy={spec.device.strategy} shards the base model; memory is that of a whole copy in each process"
    if base_files.uses_gpu(spec.device):
        yield "memory: the estimate has not been measured on a GPU"
