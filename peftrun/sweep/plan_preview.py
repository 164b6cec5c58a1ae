"""Show what a sweep would do: `action=plan`. Nothing is written, nothing is loaded. Light."""

import tempfile
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from peftrun import console
from peftrun.errors import ConfigError
from peftrun.formatting import format_bytes
from peftrun.planning import throughput
from peftrun.planning.joint_memory import Limits
from peftrun.sweep import console_tables, groups, planner
from peftrun.sweep.cells import Cell
from peftrun.sweep.devices import WorkerDevice

PLAN = "plan"


def is_plan_only(master: DictConfig) -> bool:
    """Whether the command plans a sweep instead of running it."""
    return bool(OmegaConf.select(master, "action.name") == PLAN)


def replace_action(text: str) -> str:
    """The override with action=plan replaced: a plan is about the training."""
    return "action=train" if text == f"action={PLAN}" else text


def write_nothing(master: DictConfig) -> None:
    """Redirect the files that Hydra's sweeper writes at once to a temporary folder, which the caller removes.

    Raises: ConfigError: the command is a search, whose cells depend on the results of others.
    """
    if not str(master.hydra.sweeper._target_).endswith(".BasicSweeper"):
        raise ConfigError("action=plan: a search chooses its cells as it goes; omit hydra/sweeper to plan a grid")
    master.hydra.sweep.dir = tempfile.mkdtemp(prefix="peftrun-plan-")


def show_plan(
    batch: Sequence[Cell],
    ready: Sequence[Cell],
    allowed: Limits,
    status: dict[str, str],
    labels: dict[int, str],
    *,
    devices: Sequence[WorkerDevice] = (),
) -> None:
    """Print the plan: every cell, the groups and waves of the cells in `ready`, estimated memory and time.

    Args: devices: over which the groups are spread; empty: one process.
    """
    specs = {cell.id: cell.spec for cell in ready if cell.spec is not None}
    throughputs = throughput.read_throughputs([*specs.values()])
    plan = planner.plan_sweep(groups.group_cells(ready), allowed, throughputs, [device.name for device in devices])
    seconds = {cell_id: throughputs.seconds(spec) for cell_id, spec in specs.items()}
    for line in console_tables.format_plan(batch, plan, labels, status, seconds):
        console.print_result(line)
    limit = "no limit is known" if plan.limit is None else f"limit {format_bytes(plan.limit)}"
    if devices:
        limit += " on each device"
    # The row lengths, in tokens, that the memory estimate assumes.
    lengths = {
        spec.task.max_length: throughputs.lengths(spec) for spec in specs.values() if spec.action.name == "train"
    }
    unknown = [max_length for max_length, known in lengths.items() if known is None]
    rows = ""
    if unknown:
        rows = (
            f", rows as long as task.max_length={max(unknown)} allows (a run on the same rows would tell their lengths)"
        )
    elif lengths:
        longest = max(known.longest for known in lengths.values() if known)
        rows = f", rows of at most {longest} tokens as in an earlier run"
    memory = f"memory: an estimate from the base model's files{rows}; {limit}"
    for note in ("", memory, *plan.notes, *throughputs.notes([*specs.values()])):
        console.print_result(note)
