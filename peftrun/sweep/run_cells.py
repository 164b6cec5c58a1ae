"""Runs cells of a sweep, here or on a cluster: `python -m peftrun.sweep.run_cells FOLDER...` (cell folders of one group). Light."""

import dataclasses
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from peftrun import console
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

ALL = Limits(here=False)  # of a worker, whose group was planned for it


def run(folders: Sequence[Path], allowed: Limits = ALL, halving: dict[str, int] | None = None) -> None:
    """Completes the cells in `folders`, which may be trained together. Each then has a finished record, a failed one its reason.

    A completed cell is not touched. An earlier attempt is set aside and continued from its last whole checkpoint.

    Args: allowed: what cells in one step may take. halving: see `execute.execute_jointly`.
    """
    ready = [(spec, cell) for cell in folders if (spec := _prepare_cell(cell)) is not None]
    if len(ready) > 1:
        _run_together([spec for spec, _ in ready], [cell for _, cell in ready], allowed, halving)
        return
    for spec, cell in ready:
        _run_one(spec, cell)


def _prepare_cell(cell: Path) -> RunSpec | None:
    """What is to be run in a cell's folder; None if it is completed, or cannot be run any more (its record says why)."""
    found = folder.read_status(cell)
    if found == folder.COMPLETED:
        return None
    if found != folder.WAITING or _has_begun(cell):
        folder.set_aside(cell)
    try:
        spec = build_spec_from_values(config.read_values(cell / CONFIG))
    except PeftrunError as fault:
        record_failure(cell, fault.lines)
        return None
    return _resume_run(spec, cell)


def find_changed_cell_inputs(cell: Path, spec: RunSpec) -> list[str]:
    """What a cell that has ended was made from, and is another now; nothing where its record does not tell."""
    if folder.read_status(cell) not in (folder.COMPLETED, folder.STOPPED):
        return []
    then = atomic_files.read_json(cell / RECORD).get("input_digests") or {}
    return input_digests.list_changes(then, input_digests.compute_digests(spec)) if then else []


def _has_begun(cell: Path) -> bool:
    return {path.name for path in cell.iterdir()} != {CONFIG}


def _resume_run(spec: RunSpec, cell: Path) -> RunSpec:
    """The run, continuing the attempt that came furthest, if one left a whole checkpoint."""
    from peftrun.training import checkpoints

    if not isinstance(spec.action, TrainAction):
        return spec
    left = [
        (point, one) for one in folder.list_attempts(cell) if (point := checkpoints.find_last_complete(one)) is not None
    ]
    now = input_digests.compute_digests(spec) if left else {}  # a base that will not fit is refused before it is read
    found = [(point, one) for point, one in left if not checkpoints.find_changed_inputs(point, now)]
    if not found:
        return spec
    furthest = max(found, key=lambda pair: checkpoints.get_step(pair[0]))[1]
    return dataclasses.replace(spec, action=dataclasses.replace(spec.action, resume=str(furthest)))


def _run_one(spec: RunSpec, cell: Path) -> None:
    try:
        result = execute.execute_run(spec, cell)
        if spec.action.name != "train":  # whose figures are in the sweep's own table
            console.print_summary_table(dataclasses.replace(result, next_commands=[]))
    except PeftrunError as fault:
        console.print_warning(f"cell {cell.name} failed: {fault.lines[0] if fault.lines else fault}")
    except Exception:  # a bug; its record holds the last line, and the other cells go on
        console.print_warning(f"cell {cell.name} failed:")
        traceback.print_exc()


def _run_together(specs: list[RunSpec], cells: list[Path], allowed: Limits, halving: dict[str, int] | None) -> None:
    apart = []
    try:
        apart = execute.execute_jointly(specs, cells, allowed, halving)
    except Exception:  # a bug; the records of those that had not ended hold the last line
        console.print_warning(f"cells {', '.join(cell.name for cell in cells)}: cannot go on:")
        traceback.print_exc()
    for number in apart:
        _run_one(specs[number], cells[number])


def record_failure(cell: Path, lines: Sequence[str]) -> None:
    """Leaves a failed record in the folder of a cell that cannot be run, with the reason."""
    atomic_files.write_json(cell / RECORD, {"status": folder.FAILED, "error": "\n".join(lines), "seconds": 0.0})


if __name__ == "__main__":
    run([Path(name) for name in sys.argv[1:]])
