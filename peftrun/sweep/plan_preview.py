"""What a sweep would do: `action=plan`. Nothing is written, nothing is loaded. Light."""

import tempfile
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from peftrun import console
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError
from peftrun.planning import throughput
from peftrun.planning.joint_memory import Limits
from peftrun.sweep import console_tables, groups, planner
from peftrun.sweep.cells import Cell
from peftrun.system.sizes import format_gigabytes

PLAN = "plan"


def is_plan_only(master: DictConfig) -> bool:
    """Whether a sweep is to be planned only."""
    return bool(OmegaConf.select(master, "action.name") == PLAN)


def replace_action(text: str) -> str:
    """An override of the command that is planned: the same with action=train."""
    return "action=train" if text == f"action={PLAN}" else text


def write_nothing(master: DictConfig) -> None:
    """Sends what Hydra's sweeper writes at once to a folder that is taken away again.

    Raises: ConfigError: a search is to be planned, which chooses its cells by what came out of others.
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
) -> None:
    """Prints the plan: every cell, the groups and waves of those that are to be run, estimated memory and time."""
    specs = {cell.id: cell.spec for cell in ready if cell.spec is not None}
    paces = throughput.read_throughputs([*specs.values()])
    plan = planner.plan_sweep(groups.group_cells(ready), allowed, paces.lengths)
    seconds = {cell: paces.seconds(spec) for cell, spec in specs.items()}
    for line in console_tables.format_plan(batch, plan, labels, status, seconds):
        console.print_result(line)
    limit = "no limit is known" if plan.limit is None else f"limit {format_gigabytes(plan.limit)}"
    rows = _describe_rows([*specs.values()], paces)
    for note in (
        "",
        f"memory: an estimate from the base's files{rows}; {limit}",
        *plan.notes,
        *paces.notes([*specs.values()]),
    ):
        console.print_result(note)


def _describe_rows(specs: Sequence[RunSpec], paces: throughput.Throughputs) -> str:
    """What the estimate takes the rows for."""
    longest = {spec.task.max_length: paces.lengths(spec) for spec in specs if spec.action.name == "train"}
    guessed = [most for most, found in longest.items() if found is None]
    if guessed:
        return (
            f", rows as long as task.max_length={max(guessed)} allows (a run on the same rows would tell their lengths)"
        )
    known = max((found.longest for found in longest.values() if found), default=None)
    return f", rows of at most {known} tokens as an earlier run had them" if known else ""
