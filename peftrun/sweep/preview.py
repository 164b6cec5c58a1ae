"""What a sweep would do: `action=plan`. Nothing is written, nothing is loaded. Light."""

import tempfile
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from peftrun import console
from peftrun.errors import ConfigError
from peftrun.sweep import groups, pace, planner, table
from peftrun.sweep.cells import Cell
from peftrun.system.sizes import gigabytes

PLAN = "plan"


def wanted(master: DictConfig) -> bool:
    """Whether a sweep is to be planned only."""
    return bool(OmegaConf.select(master, "action.name") == PLAN)


def to_train(text: str) -> str:
    """An override of the command that is planned: the same with action=train."""
    return "action=train" if text == f"action={PLAN}" else text


def write_nothing(master: DictConfig) -> None:
    """Sends what Hydra's sweeper writes at once to a folder that is taken away again.

    Raises: ConfigError: a search is to be planned, which chooses its cells by what came out of others.
    """
    if not str(master.hydra.sweeper._target_).endswith(".BasicSweeper"):
        raise ConfigError("action=plan: a search chooses its cells as it goes; omit hydra/sweeper to plan a grid")
    master.hydra.sweep.dir = tempfile.mkdtemp(prefix="peftrun-plan-")


def show(
    batch: Sequence[Cell],
    ready: Sequence[Cell],
    allowed: planner.Limits,
    status: dict[str, str],
    labels: dict[int, str],
) -> None:
    """Prints the plan: every cell, the groups and waves of those that are to be run, estimated memory and time."""
    times, notes = pace.estimates([cell.spec for cell in ready if cell.spec is not None])
    plan = planner.plan(groups.form(ready), allowed)
    seconds = dict(zip([cell.id for cell in ready], times, strict=True))
    for line in table.planned(batch, plan, labels, status, seconds):
        console.show(line)
    limit = "no limit is known" if plan.limit is None else f"limit {gigabytes(plan.limit)}"
    for note in ("", f"memory: an estimate from the base's files; {limit}", *plan.notes, *notes):
        console.show(note)
