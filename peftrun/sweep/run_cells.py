"""Run cells of a sweep, in this process: the launcher's own, or a worker's. Light."""

import dataclasses
import traceback
from collections.abc import Sequence
from pathlib import Path

from peftrun import console
from peftrun.artifacts import hub_download, records
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import values as config
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.run import RunSpec
from peftrun.data import input_digests
from peftrun.errors import PeftrunError
from peftrun.io import atomic_files
from peftrun.planning.joint_memory import Limits
from peftrun.runs import execute
from peftrun.sweep import folder

ALL = Limits(here=False)  # for a worker: the planner has already limited its cells


def run(folders: Sequence[Path], allowed: Limits = ALL, halving: dict[str, int] | None = None) -> None:
    """Complete the cells in `folders`, which may be trained together. Each then has a finished record; a failed one holds the reason.

    A completed cell is not touched. An earlier attempt is moved to attempts/ and continued from its last complete checkpoint.

    Args: allowed: limits of the cells in one step. halving: see `execute.execute_jointly`.
    """
    ready = [(spec, cell) for cell in folders if (spec := _prepare_cell(cell)) is not None]
    alone: Sequence[int] = range(len(ready))  # indices of cells that cannot be trained together
    if len(ready) > 1:
        alone, specs, cells = [], [spec for spec, _ in ready], [cell for _, cell in ready]
        try:
            alone = execute.execute_jointly(specs, cells, allowed, halving)
        except Exception:  # a bug: the records of unfinished cells hold the last line of the traceback
            console.print_warning(f"cells {', '.join(cell.name for cell in cells)}: cannot go on:")
            traceback.print_exc()
    for index in alone:
        spec, cell = ready[index]
        try:
            result = execute.execute_run(spec, cell)
            if spec.action.name != "train":  # training metrics are in the sweep's own table
                console.print_summary_table(dataclasses.replace(result, next_commands=[]))
        except PeftrunError as error:
            console.print_warning(f"cell {cell.name} failed: {error.lines[0] if error.lines else error}")
        except Exception:  # a bug: the record holds the last line of the traceback, and the other cells go on
            console.print_warning(f"cell {cell.name} failed:")
            traceback.print_exc()


def _prepare_cell(cell: Path) -> RunSpec | None:
    """The run of a cell's folder; None if it is completed, or cannot be run any more (its record then says why)."""
    status = folder.read_status(cell)
    if status == folder.COMPLETED:
        return None
    # A process killed early leaves other files and no record.
    if status != folder.WAITING or {path.name for path in cell.iterdir()} != {CONFIG}:
        folder.set_aside(cell)
    try:
        values = config.read_run(cell / CONFIG, report_changes=False)
        adapters = hub_download.pin_adapters(values["adapter"])  # a worker on another machine has its own cache
        spec = build_spec_from_values({**values, "adapter": adapters})
    except PeftrunError as error:
        record_failure(cell, error.lines)
        return None
    return _resume_run(spec, cell)


def find_changed_cell_inputs(cell: Path, spec: RunSpec) -> list[str]:
    """Names of a finished cell's inputs (data, base model) that have changed since; empty if its record does not hold their digests."""
    if folder.read_status(cell) not in (folder.COMPLETED, folder.STOPPED):
        return []
    digests = records.read_record(cell).get("input_digests") or {}
    return input_digests.list_changes(digests, input_digests.compute_digests(spec)) if digests else []


def _resume_run(spec: RunSpec, cell: Path) -> RunSpec:
    """The run, resuming the attempt with the highest step, if one left a complete checkpoint of the same inputs."""
    from peftrun.training import checkpoints

    if not isinstance(spec.action, TrainAction):
        return spec
    candidates = [
        (checkpoint, attempt)
        for attempt in folder.list_attempts(cell)
        if (checkpoint := checkpoints.find_last_complete(attempt)) is not None
    ]
    if not candidates:  # digests read the base model's files, which a model refused for lack of memory should not cost
        return spec
    digests = input_digests.compute_digests(spec)
    usable = [
        (checkpoints.get_step(checkpoint), attempt)
        for checkpoint, attempt in candidates
        if not checkpoints.find_changed_inputs(checkpoint, digests)
    ]
    if not usable:
        return spec
    _, furthest = max(usable, key=lambda pair: pair[0])
    return dataclasses.replace(spec, action=dataclasses.replace(spec.action, resume=str(furthest)))


def record_failure(cell: Path, lines: Sequence[str]) -> None:
    """Write a failed record, with the reason, into the folder of a cell that cannot be run."""
    atomic_files.write_json(cell / RECORD, {"status": folder.FAILED, "error": "\n".join(lines), "seconds": 0.0})
