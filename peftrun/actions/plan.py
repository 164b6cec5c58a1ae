"""Say what a training would take, before it is begun. Of a sweep its launcher makes the plan: `sweep.flow`.

From files alone nothing heavy is imported; a few steps on the real base (`action.measured_steps`) tell the time.
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
    """`count`: parameters trained and all, and whether that is exact. `rows`: to train on. None: not known from files."""

    count: tuple[int, int, bool] | None
    memory: MemoryEstimate | None
    free: int | None
    rows: int | None
    seconds: dict[str, float]
    measured: Any
    notes: list[str]


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """What the same command with action=train would take, as a summary and in the record.

    Raises: ConfigError: training would refuse the config. PeftrunError: with measured steps, what training would find at fault.
    """
    assert isinstance(spec.action, PlanAction)
    asked = spec.action
    wanted = cross_group.as_training(spec, TrainAction("train", asked.resume, asked.evaluate_before, asked.samples))
    free = _get_free_memory(wanted)
    wanted, short = _resolve_dtype(wanted)
    plan = _plan_from_files(wanted, free)
    if spec.action.measured_steps and not _explain_memory_shortage(wanted, plan):
        plan = _plan_from_steps(_restrict_to_one_process(wanted), wanted, spec.action.measured_steps, free)
    if short:
        plan.notes.append(f"device.dtype=auto is bfloat16 here: float32 would take {short}")
    return RunResult(out_dir, {"plan": _build_facts(wanted, plan)}, summary=list(_build_summary(wanted, plan)))


def _get_free_memory(spec: RunSpec) -> int | None:
    """Bytes for one process; None where only the GPU's own library would tell."""
    free = None if base_files.uses_gpu(spec.device) else free_memory.get_available_memory().bytes
    return None if free is None else free // spec.device.processes


def _resolve_dtype(spec: RunSpec) -> tuple[RunSpec, str | None]:
    """The run with the dtype that `auto` means for it, and what float32 is short of where that is bfloat16 instead."""
    base = None if base_files.uses_gpu(spec.device) else base_files.read_base_info(spec.model)
    return (
        (spec, None)
        if base is None
        else memory_fit.choose_load_dtype(base, spec, memory_fit.measure_headroom(spec.device.processes))
    )


def _restrict_to_one_process(spec: RunSpec) -> RunSpec:
    """What one of several processes does, by itself; it begins anew also where a run is to be continued."""
    device = spec.device
    shared = torchrun.share_cpus(device.processes) if device.processes > 1 else None
    alone = dataclasses.replace(
        device, strategy=None, processes=1, machines=1, machine_rank=0, num_threads=device.num_threads or shared
    )
    assert isinstance(spec.action, TrainAction)
    return dataclasses.replace(spec, device=alone, action=dataclasses.replace(spec.action, resume=None))


def _plan_from_files(spec: RunSpec, free: int | None) -> _TrainingPlan:
    base = base_files.read_base_info(spec.model)
    paces = throughput.read_throughputs([spec])
    seconds, lengths, notes = paces.seconds(spec), paces.lengths(spec), paces.notes([spec])
    times = {} if seconds is None else {"training": seconds / _count_processes(spec)}
    if base is None:
        notes = [
            f"memory: not known for {base_files.format_base_name(spec.model)}, whose files are not on this disk yet",
            *notes,
        ]
        return _TrainingPlan(None, None, free, spec.task.data.train_rows, times, None, notes)
    counted = parameter_count.estimate_parameters(base, spec.lora, spec.task)
    count = (counted.trained, base.parameters + counted.held, counted.exact)
    if lengths:
        notes = [f"memory: rows of at most {lengths.longest} tokens, as an earlier run had them", *notes]
    return _TrainingPlan(
        count, memory.estimate_memory(base, spec, lengths), free, spec.task.data.train_rows, times, None, notes
    )


def _plan_from_steps(alone: RunSpec, spec: RunSpec, steps: int, free: int | None) -> _TrainingPlan:
    started = time.perf_counter()
    measure = execute.import_quietly("peftrun.training.measure_steps")
    importing = time.perf_counter() - started
    found = measure.measure_training(alone, steps)
    base = base_files.read_base_info(spec.model)
    estimate = None if base is None else memory.estimate_memory(base, spec, found.lengths)
    return _TrainingPlan(
        (found.trained, found.parameters, True),
        estimate,
        free,
        found.rows,
        _estimate_seconds(spec, found, importing),
        found,
        [],
    )


def _estimate_seconds(spec: RunSpec, found: Any, importing: float) -> dict[str, float]:
    """Seconds of each part of the whole run."""
    steps, (before, after) = (
        throughput.count_optimizer_steps(spec.trainer, found.rows, _count_processes(spec)) or 0,
        found.evaluating,
    )
    validations = _count_validations(spec, steps)
    return {
        "start": importing + found.starting,
        "before": before * found.held_out,
        "training": found.step * steps + validations * found.validation * after,
        "after": after * found.held_out,
    }


def _count_validations(spec: RunSpec, steps: int) -> int:
    if spec.trainer.eval_strategy == "steps":
        return steps // spec.trainer.eval_steps
    return round(spec.trainer.num_train_epochs) if spec.trainer.eval_strategy == "epoch" else 0


def _count_processes(spec: RunSpec) -> int:
    return spec.device.processes * spec.device.machines


def _explain_memory_shortage(spec: RunSpec, plan: _TrainingPlan) -> str | None:
    """Why it will not fit, and what to type; None: it will, or that is not known."""
    if plan.memory is None or plan.free is None or plan.memory.peak <= plan.free:
        return None
    base = base_files.read_base_info(spec.model)
    choices = memory_fit.suggest_overrides(base, spec, memory_fit.build_headroom(plan.free)) if base else []
    what = f"type {' or '.join(choices)}" if choices else "choose a smaller model, or a machine with more memory"
    return f"will not fit: {format_gigabytes(plan.memory.peak)} of {format_gigabytes(plan.free)} free; {what}"


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
    yield "machine", _explain_memory_shortage(spec, plan) or _format_free_memory(plan)
    yield "steps", _format_steps(spec, plan)
    yield "time", _format_time(spec, plan)
    if plan.measured:
        yield (
            "measured",
            f"{plan.measured.step:.2f} s a step, {format_gigabytes(plan.measured.peak)} at the height of these steps",
        )
    for note in [*plan.notes, *_build_notes(spec)]:
        yield "note", note


def _format_parameters(plan: _TrainingPlan) -> str:
    if plan.count is None:
        return "unknown"
    trained, parameters, exact = plan.count
    return f"{'' if exact else 'about '}{trained:,} of {parameters:,} parameters ({trained / parameters:.2%})"


def _format_memory(spec: RunSpec, plan: _TrainingPlan) -> str:
    found = plan.memory
    if found is None:
        return "unknown"
    parts = {
        "weights": found.weights, "adapter": found.adapter, "gradients and optimiser": found.learning, "activations": found.activations,
        "logits": found.logits, "process": found.process, "measuring held-out rows": found.peak - _sum_training_memory(found),
    }  # fmt: skip
    shown = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in parts.items() if value >= 5e6)
    each = f" for each of {spec.device.processes} processes" if spec.device.processes > 1 else ""
    if found.peak == found.loading:
        return f"about {format_gigabytes(found.peak)}{each}, while the base is loaded; then {shown}"
    return f"about {format_gigabytes(found.peak)}{each}: {shown}"


def _sum_training_memory(found: MemoryEstimate) -> float:
    """All but what measuring adds."""
    return found.process + found.weights + found.adapter + found.learning + found.activations + found.logits


def _format_free_memory(plan: _TrainingPlan) -> str:
    if plan.memory is None or plan.free is None:
        return "not known whether it fits"
    return f"fits: {format_gigabytes(plan.free)} are free"


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
    whole = format_rough_duration(sum(plan.seconds.values()))
    if plan.measured is None:
        return f"about {whole} of training"
    words = {"start": "start", "before": "held-out rows before", "training": "training", "after": "held-out rows after"}
    return f"about {whole}: " + ", ".join(
        f"{words[key]} {format_rough_duration(value)}" for key, value in plan.seconds.items() if value
    )


def _build_notes(spec: RunSpec) -> Any:
    assert isinstance(spec.action, TrainAction)
    if spec.action.resume:
        yield "of the whole training; one that is continued takes only the steps that are left"
    if spec.device.strategy in ("fsdp", "deepspeed"):
        yield f"device.strategy={spec.device.strategy} shares the base among processes; memory is that of a whole copy in each"
    if base_files.uses_gpu(spec.device):
        yield "memory: the estimate was never measured on a GPU"
