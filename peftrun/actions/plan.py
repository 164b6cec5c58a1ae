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
from peftrun.formatting import rough_duration
from peftrun.planning import memory, memory_fit, parameter_count, throughput
from peftrun.planning.memory import Memory
from peftrun.result import RunResult
from peftrun.runs import execute, torchrun
from peftrun.system import free_memory
from peftrun.system.sizes import gigabytes


@dataclass(frozen=True)
class _Plan:
    """`count`: parameters trained and all, and whether that is exact. `rows`: to train on. None: not known from files."""

    count: tuple[int, int, bool] | None
    memory: Memory | None
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
    free = _free(wanted)
    wanted, short = _settled(wanted)
    plan = _from_files(wanted, free)
    if spec.action.measured_steps and not _beyond(wanted, plan):
        plan = _from_steps(_of_one_process(wanted), wanted, spec.action.measured_steps, free)
    if short:
        plan.notes.append(f"device.dtype=auto is bfloat16 here: float32 would take {short}")
    return RunResult(out_dir, {"plan": _facts(wanted, plan)}, summary=list(_summary(wanted, plan)))


def _free(spec: RunSpec) -> int | None:
    """Bytes for one process; None where only the GPU's own library would tell."""
    free = None if base_files.on_gpu(spec.device) else free_memory.available().bytes
    return None if free is None else free // spec.device.processes


def _settled(spec: RunSpec) -> tuple[RunSpec, str | None]:
    """The run with the dtype that `auto` means for it, and what float32 is short of where that is bfloat16 instead."""
    base = None if base_files.on_gpu(spec.device) else base_files.read(spec.model)
    return (spec, None) if base is None else memory_fit.settled(base, spec, memory_fit.headroom(spec.device.processes))


def _of_one_process(spec: RunSpec) -> RunSpec:
    """What one of several processes does, by itself; it begins anew also where a run is to be continued."""
    device = spec.device
    shared = torchrun.share_of_processors(device.processes) if device.processes > 1 else None
    alone = dataclasses.replace(
        device, strategy=None, processes=1, machines=1, machine_rank=0, num_threads=device.num_threads or shared
    )
    assert isinstance(spec.action, TrainAction)
    return dataclasses.replace(spec, device=alone, action=dataclasses.replace(spec.action, resume=None))


def _from_files(spec: RunSpec, free: int | None) -> _Plan:
    base = base_files.read(spec.model)
    paces = throughput.of_all([spec])
    seconds, lengths, notes = paces.seconds(spec), paces.lengths(spec), paces.notes([spec])
    times = {} if seconds is None else {"training": seconds / _processes(spec)}
    if base is None:
        notes = [
            f"memory: not known for {base_files.name_of(spec.model)}, whose files are not on this disk yet",
            *notes,
        ]
        return _Plan(None, None, free, spec.task.data.train_rows, times, None, notes)
    counted = parameter_count.count(base, spec.lora, spec.task)
    count = (counted.trained, base.parameters + counted.held, counted.exact)
    if lengths:
        notes = [f"memory: rows of at most {lengths.longest} tokens, as an earlier run had them", *notes]
    return _Plan(count, memory.of_run(base, spec, lengths), free, spec.task.data.train_rows, times, None, notes)


def _from_steps(alone: RunSpec, spec: RunSpec, steps: int, free: int | None) -> _Plan:
    started = time.perf_counter()
    measure = execute.heavy("peftrun.training.measure_steps")
    importing = time.perf_counter() - started
    found = measure.take(alone, steps)
    base = base_files.read(spec.model)
    estimate = None if base is None else memory.of_run(base, spec, found.lengths)
    return _Plan(
        (found.trained, found.parameters, True), estimate, free, found.rows, _times(spec, found, importing), found, []
    )


def _times(spec: RunSpec, found: Any, importing: float) -> dict[str, float]:
    """Seconds of each part of the whole run."""
    steps, (before, after) = throughput.steps(spec.trainer, found.rows, _processes(spec)) or 0, found.evaluating
    validations = _validations(spec, steps)
    return {
        "start": importing + found.starting,
        "before": before * found.held_out,
        "training": found.step * steps + validations * found.validation * after,
        "after": after * found.held_out,
    }


def _validations(spec: RunSpec, steps: int) -> int:
    if spec.trainer.eval_strategy == "steps":
        return steps // spec.trainer.eval_steps
    return round(spec.trainer.num_train_epochs) if spec.trainer.eval_strategy == "epoch" else 0


def _processes(spec: RunSpec) -> int:
    return spec.device.processes * spec.device.machines


def _beyond(spec: RunSpec, plan: _Plan) -> str | None:
    """Why it will not fit, and what to type; None: it will, or that is not known."""
    if plan.memory is None or plan.free is None or plan.memory.peak <= plan.free:
        return None
    base = base_files.read(spec.model)
    choices = memory_fit.advice(base, spec, memory_fit.of_free(plan.free)) if base else []
    what = f"type {' or '.join(choices)}" if choices else "choose a smaller model, or a machine with more memory"
    return f"will not fit: {gigabytes(plan.memory.peak)} of {gigabytes(plan.free)} free; {what}"


def _facts(spec: RunSpec, plan: _Plan) -> dict[str, Any]:
    names = ("trained", "parameters", "exact")
    return {
        **(dict(zip(names, plan.count, strict=True)) if plan.count else {}),
        "memory": plan.memory.as_dict() if plan.memory else None,
        "free": plan.free,
        "processes": _processes(spec),
        "rows": plan.rows,
        "steps": throughput.steps(spec.trainer, plan.rows, _processes(spec)),
        "seconds": round(sum(plan.seconds.values()), 1) if plan.seconds else None,
        "parts": {key: round(value, 1) for key, value in plan.seconds.items()},
        "measured": dataclasses.asdict(plan.measured) if plan.measured else None,
    }


def _summary(spec: RunSpec, plan: _Plan) -> Any:
    yield "trained", _trained(plan)
    yield "memory", _memory(spec, plan)
    yield "machine", _beyond(spec, plan) or _room(plan)
    yield "steps", _steps(spec, plan)
    yield "time", _time(spec, plan)
    if plan.measured:
        yield (
            "measured",
            f"{plan.measured.step:.2f} s a step, {gigabytes(plan.measured.peak)} at the height of these steps",
        )
    for note in [*plan.notes, *_notes(spec)]:
        yield "note", note


def _trained(plan: _Plan) -> str:
    if plan.count is None:
        return "unknown"
    trained, parameters, exact = plan.count
    return f"{'' if exact else 'about '}{trained:,} of {parameters:,} parameters ({trained / parameters:.2%})"


def _memory(spec: RunSpec, plan: _Plan) -> str:
    found = plan.memory
    if found is None:
        return "unknown"
    parts = {
        "weights": found.weights, "adapter": found.adapter, "gradients and optimiser": found.learning, "activations": found.activations,
        "logits": found.logits, "process": found.process, "measuring held-out rows": found.peak - _held(found),
    }  # fmt: skip
    shown = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in parts.items() if value >= 5e6)
    each = f" for each of {spec.device.processes} processes" if spec.device.processes > 1 else ""
    if found.peak == found.loading:
        return f"about {gigabytes(found.peak)}{each}, while the base is loaded; then {shown}"
    return f"about {gigabytes(found.peak)}{each}: {shown}"


def _held(found: Memory) -> float:
    """All but what measuring adds."""
    return found.process + found.weights + found.adapter + found.learning + found.activations + found.logits


def _room(plan: _Plan) -> str:
    if plan.memory is None or plan.free is None:
        return "not known whether it fits"
    return f"fits: {gigabytes(plan.free)} are free"


def _steps(spec: RunSpec, plan: _Plan) -> str:
    trainer, processes = spec.trainer, _processes(spec)
    steps, size = throughput.steps(trainer, plan.rows, processes), throughput.step_rows(trainer, processes)
    if steps is None:
        return f"unknown until rows are counted; {size} rows a step"
    return throughput.seen(steps, size, plan.rows)


def _time(spec: RunSpec, plan: _Plan) -> str:
    if not plan.seconds:
        return "unknown"
    whole = rough_duration(sum(plan.seconds.values()))
    if plan.measured is None:
        return f"about {whole} of training"
    words = {"start": "start", "before": "held-out rows before", "training": "training", "after": "held-out rows after"}
    return f"about {whole}: " + ", ".join(
        f"{words[key]} {rough_duration(value)}" for key, value in plan.seconds.items() if value
    )


def _notes(spec: RunSpec) -> Any:
    assert isinstance(spec.action, TrainAction)
    if spec.action.resume:
        yield "of the whole training; one that is continued takes only the steps that are left"
    if spec.device.strategy in ("fsdp", "deepspeed"):
        yield f"device.strategy={spec.device.strategy} shares the base among processes; memory is that of a whole copy in each"
    if base_files.on_gpu(spec.device):
        yield "memory: the estimate was never measured on a GPU"
