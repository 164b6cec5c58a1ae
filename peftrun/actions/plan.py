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
from peftrun.formatting import format_bytes, format_duration
from peftrun.planning import memory, memory_fit, parameter_count, throughput
from peftrun.planning.memory import MemoryEstimate
from peftrun.result import RunResult
from peftrun.runs import execute, torchrun
from peftrun.system import free_memory


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
        spec, TrainAction("train", action.resume, action.evaluate_before, action.num_samples, action.stack)
    )
    # On a GPU only torch can tell how much memory is free; the estimate then says nothing of whether the run fits.
    on_gpu = base_files.uses_gpu(training_spec.device)
    free_bytes = None if on_gpu else free_memory.get_available_memory().bytes // training_spec.device.num_processes
    base, shortage = None if on_gpu else base_files.read_base_info(training_spec.model), None
    if base is not None:  # resolve device.dtype=auto
        headroom = memory_fit.measure_headroom(training_spec.device.num_processes)
        training_spec, shortage = memory_fit.choose_load_dtype(base, training_spec, headroom)
    plan = _plan_from_files(training_spec, free_bytes)
    # Measuring loads the base model, so it is skipped if the estimate already says that memory will not suffice.
    if action.measure_steps and not _explain_memory_shortage(training_spec, plan):
        plan = _plan_from_steps(training_spec, action.measure_steps, free_bytes)
    if shortage:  # the memory of float32, where bfloat16 was chosen instead
        plan.notes.append(f"device.dtype=auto is bfloat16 here: float32 would take {shortage}")
    names = ("trained", "parameters", "exact")
    processes = _count_processes(training_spec)
    facts = {
        **(dict(zip(names, plan.count, strict=True)) if plan.count else {}),
        "memory": plan.memory.as_dict() if plan.memory else None,
        "free": plan.free,
        "processes": processes,
        "rows": plan.rows,
        "steps": throughput.count_optimizer_steps(training_spec.trainer, plan.rows, processes),
        "seconds": round(sum(plan.seconds.values()), 1) if plan.seconds else None,
        "parts": {key: round(value, 1) for key, value in plan.seconds.items()},
        "measured": dataclasses.asdict(plan.measured) if plan.measured else None,
    }
    return RunResult(out_dir, {"plan": facts}, summary=list(_build_summary(training_spec, plan)))


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
    parameters = parameter_count.estimate_parameters(base, spec)
    count = (parameters.trained, base.parameters + parameters.held, parameters.exact)
    if lengths:
        notes = [f"memory: rows of at most {lengths.longest} tokens, as in an earlier run on this data", *notes]
    return _TrainingPlan(
        count, memory.estimate_memory(base, spec, lengths), free, spec.task.data.num_train_rows, times, None, notes
    )


def _plan_from_steps(spec: RunSpec, steps: int, free: int | None) -> _TrainingPlan:
    assert isinstance(spec.action, TrainAction)
    device, action = spec.device, spec.action
    # The share of one process is measured alone, from step 0 even if the run would be resumed.
    threads = torchrun.share_cpus(device.num_processes) if device.num_processes > 1 else None
    single_device = dataclasses.replace(
        device,
        strategy=None,
        num_processes=1,
        num_machines=1,
        machine_rank=0,
        num_threads=device.num_threads or threads,
    )
    single_spec = dataclasses.replace(spec, device=single_device, action=dataclasses.replace(action, resume=None))
    started = time.perf_counter()
    measure = execute.import_quietly("peftrun.training.measure_steps")
    importing = time.perf_counter() - started  # seconds; several of them, which a real run spends too
    measured = measure.measure_training(single_spec, steps)
    base = base_files.read_base_info(spec.model)
    estimate = None if base is None else memory.estimate_memory(base, spec, measured.lengths)
    # Times of a step and of a row are scaled to the numbers of the whole run.
    trainer = spec.trainer
    optimizer_steps = throughput.count_optimizer_steps(trainer, measured.rows, _count_processes(spec)) or 0
    validations = {"steps": optimizer_steps // trainer.eval_steps, "epoch": round(trainer.num_train_epochs)}.get(
        trainer.eval_strategy, 0
    )
    before, after = measured.evaluating  # seconds per evaluation row, before and after training
    seconds = {
        "start": importing + measured.starting,
        "before": before * measured.held_out,
        "training": measured.step * optimizer_steps + validations * measured.validation * after,
        "after": after * measured.held_out,
    }
    count = (measured.trained, measured.parameters, True)
    return _TrainingPlan(count, estimate, free, measured.rows, seconds, measured, [])


def _count_processes(spec: RunSpec) -> int:
    return spec.device.num_processes * spec.device.num_machines


def _explain_memory_shortage(spec: RunSpec, plan: _TrainingPlan) -> str | None:
    """Why the run will not fit in memory, and what to type; None: it fits, or that is not known."""
    if plan.memory is None or plan.free is None or plan.memory.peak <= plan.free:
        return None
    base = base_files.read_base_info(spec.model)
    overrides = memory_fit.suggest_overrides(base, spec, memory_fit.build_headroom(plan.free)) if base else []
    advice = f"type {' or '.join(overrides)}" if overrides else "choose a smaller model, or a machine with more memory"
    return f"will not fit: {format_bytes(plan.memory.peak)} of {format_bytes(plan.free)} free; {advice}"


def _build_summary(spec: RunSpec, plan: _TrainingPlan) -> Any:
    parameters = "unknown"
    if plan.count:
        trained, total, exact = plan.count
        parameters = f"{'' if exact else 'about '}{trained:,} of {total:,} parameters ({trained / total:.2%})"
    yield "trained", parameters
    yield "memory", _format_memory(spec, plan)
    fits = "not known whether it fits"
    if plan.memory is not None and plan.free is not None:
        fits = f"fits: {format_bytes(plan.free)} are free"
    yield "machine", _explain_memory_shortage(spec, plan) or fits
    steps = throughput.count_optimizer_steps(spec.trainer, plan.rows, _count_processes(spec))
    size = throughput.count_step_rows(spec.trainer, _count_processes(spec))
    unknown_steps = f"unknown until rows are counted; {size} rows a step"
    yield "steps", unknown_steps if steps is None else throughput.format_rows_seen(steps, size, plan.rows)
    time_text = "unknown"
    if plan.seconds:
        duration = format_duration(sum(plan.seconds.values()))
        words = {"start": "start", "before": "evaluation before", "training": "training", "after": "evaluation after"}
        parts = (f"{words[key]} {format_duration(value)}" for key, value in plan.seconds.items() if value)
        time_text = (
            f"about {duration} of training" if plan.measured is None else f"about {duration}: {', '.join(parts)}"
        )
    yield "time", time_text
    if plan.measured:
        yield "measured", f"{format_duration(plan.measured.step)} a step, peak {format_bytes(plan.measured.peak)}"
    yield from (("note", note) for note in plan.notes)
    assert isinstance(spec.action, TrainAction)
    if spec.action.resume:
        yield "note", "for the whole training; a resumed one takes only the remaining steps"
    if spec.device.strategy in ("fsdp", "deepspeed"):
        sharded = f"device.strategy={spec.device.strategy} shards the base model"
        yield "note", f"{sharded}; memory is that of a whole copy in each process"
    if base_files.uses_gpu(spec.device):
        yield "note", "memory: the estimate has not been measured on a GPU"


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
    shown = ", ".join(f"{name} {format_bytes(value)}" for name, value in parts.items() if value >= 1e6)
    per_process = f" for each of {spec.device.num_processes} processes" if spec.device.num_processes > 1 else ""
    if estimate.peak == estimate.loading:
        return f"about {format_bytes(estimate.peak)}{per_process}, while the base model is loaded; then {shown}"
    return f"about {format_bytes(estimate.peak)}{per_process}: {shown}"
