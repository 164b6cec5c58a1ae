"""Say how training would go, from files alone. Nothing heavy is imported. Of a sweep its launcher makes the plan: `sweep.flow`."""

import dataclasses
from pathlib import Path

from peftrun import checks
from peftrun.errors import ConfigError
from peftrun.result import RunResult
from peftrun.schema import PlanAction, RunSpec, TrainAction
from peftrun.sweep import groups, pace, planner, table
from peftrun.sweep.cells import Cell, cell_id


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """What the same command with action=train would take, as a summary and in the record."""
    assert isinstance(spec.action, PlanAction)
    training = TrainAction("train", spec.action.resume, spec.action.evaluate_before)
    wanted = dataclasses.replace(spec, action=training)
    problems = checks.run({field.name: getattr(wanted, field.name) for field in dataclasses.fields(wanted)})
    if problems:
        raise ConfigError(*problems)
    values = dataclasses.asdict(wanted)
    cell = Cell([0], [], values, wanted, id=cell_id(values))
    plan = planner.plan(groups.form([cell]), planner.Limits())
    (seconds,), notes = pace.estimates([wanted])
    memory = plan.waves[0].memory
    summary = [
        ("memory", "unknown" if memory is None else f"about {planner.gigabytes(memory)}"),
        ("time", "unknown" if seconds is None else f"about {table.duration(seconds)} of training"),
        *(("note", note) for note in [*plan.notes, *notes]),
    ]
    return RunResult(out_dir, {"plan": {"memory": memory, "seconds": seconds}}, summary=summary)
