"""How a sweep goes: compose all cells, choose the folder, freeze, group, run, sum up. Light; what trains is imported when it runs."""

import math
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from peftrun import console
from peftrun.artifacts.run_layout import RECORD
from peftrun.config import values as config
from peftrun.errors import PeftrunError, SweepError
from peftrun.formatting import many
from peftrun.io import atomic_files
from peftrun.planning import throughput
from peftrun.planning.joint_memory import read_limits
from peftrun.runs import execute
from peftrun.sweep import cells as composed
from peftrun.sweep import ending, folder, groups, halving_options, plan_preview, planner, run_cells, summary
from peftrun.sweep.cells import Cell
from peftrun.sweep.groups import Group
from peftrun.sweep.planner import Plan
from peftrun.sweep.report import page as sweep_page


class Flow:
    """One command's sweep. A search hands its cells over in several batches, which go into one folder."""

    def __init__(
        self, context: HydraContext, master: DictConfig, options: dict[str, Any], engine: str | None, *, together: bool
    ) -> None:
        self.loader: Any = context.config_loader
        self.master, self.options, self.engine, self.together = master, options, engine, together
        self.limits = read_limits(options.get("memory_limit"), options.get("max_cells"), engine is None)
        self.halving = halving_options.read(options.get("halving"), engine)
        self.plans_only = plan_preview.wanted(master)
        self.team_dir = _team_dir(master)
        self.named = Path(str(master.hydra.sweep.dir)).absolute()
        self.dated = "${now:" in str(OmegaConf.to_container(master.hydra.sweep, resolve=False))
        self.folder: Path | None = None
        self.cells: dict[str, Cell] = {}
        self.labels: dict[int, str] = {}
        self.places: dict[str, dict[str, Any]] = {}
        self.changed: dict[str, list[str]] = {}  # cells that are done → what they were made from and is another now
        self.groups = self.waves = 0
        self.started, self.clock = _now(), time.perf_counter()
        context.config_loader = _Unchecked(context.config_loader)  # type: ignore[assignment]
        if self.plans_only:
            plan_preview.write_nothing(master)

    def run(self, jobs: Sequence[Sequence[str]], first: int) -> tuple[list[float | None], SweepError | None]:
        """The objective of each job, None where it has none, and what was at fault in those that failed.

        Raises: PeftrunError: the sweep cannot run. compose.REFUSALS: no cell can be composed.
        """
        try:
            asked = [[plan_preview.to_train(text) for text in job] for job in jobs] if self.plans_only else jobs
            batch = composed.compose_all(self.loader, self.master, asked, first, self.team_dir)
            if not any(cell.spec for cell in batch):
                raise SweepError(*dict.fromkeys(line for cell in batch for line in cell.problems))
        except Exception:
            self._clean()
            raise
        self.labels |= composed.labels(batch)
        if self.plans_only:
            self._clean()
            self._show_plan(batch)
            return [None] * len(jobs), ending.fault(
                [(cell, cell.problems) for cell in batch if cell.problems], self.labels, len(batch), planned=True
            )
        self._settle(batch)
        assert self.folder is not None
        with folder.lock(self.folder):
            self._execute(batch)
            return self._outcome(batch, len(jobs), first)

    def _clean(self) -> None:
        if self.plans_only:
            shutil.rmtree(str(self.master.hydra.sweep.dir), ignore_errors=True)
        elif self.folder is None:
            folder.remove_new(self.named)

    def _show_plan(self, batch: Sequence[Cell]) -> None:
        where = folder.choose(self.named, self.dated, [cell.id for cell in batch if cell.id])
        self._look_at_inputs(where, batch)
        status = {cell.id: "refused" if cell.problems else folder.status(where / cell.id) for cell in batch}
        ready = [cell for cell in batch if cell.spec is not None and not self._done(where, cell.id)]
        plan_preview.show(batch, ready, self.limits, status, self.labels)

    def _settle(self, batch: Sequence[Cell]) -> None:
        """Chooses the folder, once; says what is known of the cells already."""
        for cell in batch:
            if len(cell.numbers) > 1:
                numbers = ", ".join(map(str, cell.numbers))
                console.say(f"cells {numbers} are identical after resolution ({cell.id}): run once")
        refused = [cell for cell in batch if cell.problems]
        if refused:
            console.warn(
                f"{len(refused)} of {len(batch)} cells are refused, the others run; first: {refused[0].problems[0]}"
            )
        ids, first = [cell.id for cell in batch if cell.id], self.folder is None
        if self.folder is None:
            self.folder = folder.choose(self.named, self.dated, ids)
            if self.folder != self.named:
                folder.remove_new(self.named)
                self.master.hydra.sweep.dir = str(self.folder)
        self._look_at_inputs(self.folder, batch)
        done = sum(self._done(self.folder, one) for one in ids)
        if done or (first and self.folder != self.named):
            console.say(f"continuing {console.short(self.folder)}: {done} of {len(batch)} cells are done")

    def _execute(self, batch: Sequence[Cell]) -> None:
        ready = []
        for cell in batch:
            known = self.cells.setdefault(cell.id or f"number {cell.numbers[0]}", cell)
            if known is not cell:
                known.numbers += cell.numbers
            if self._freeze(cell) and not self._done(self._at(cell).parent, cell.id):
                if self.changed.pop(cell.id, None):
                    folder.set_aside(self._at(cell))
                ready.append(cell)
        paces = throughput.of_all([cell.spec for cell in ready if cell.spec])
        plan = planner.plan(groups.form(ready, self.together), self.limits, paces.lengths)
        self._remember(plan)
        self._sum_up("running")
        try:
            self._send(plan)
        except BaseException as error:
            self._sum_up("interrupted" if isinstance(error, KeyboardInterrupt) else "stopped")
            raise
        finally:
            self.groups, self.waves = self.groups + len(plan.groups), self.waves + len(plan.waves)

    def _look_at_inputs(self, where: Path, batch: Sequence[Cell]) -> None:
        """Says which cells were made from other rows, or another base, than those that are there now."""
        self.changed = {
            cell.id: names for cell in batch if cell.spec and (names := run_cells.changed(where / cell.id, cell.spec))
        }
        told = dict.fromkeys(name for names in self.changed.values() for name in names)
        if told:
            cells = many(len(self.changed), "cell")
            console.warn(
                f"{cells} of {len(batch)} were made before these changed, and are run again: {', '.join(told)}"
            )

    def _done(self, where: Path, cell: str) -> bool:
        """Whether a cell is not run again; one that halving has stopped goes on once there is no halving."""
        status = folder.status(where / cell)
        done = status == folder.COMPLETED or (status == folder.STOPPED and self.halving is not None)
        return done and cell not in self.changed

    def _at(self, cell: Cell) -> Path:
        assert self.folder is not None
        return self.folder / cell.id

    def _freeze(self, cell: Cell) -> bool:
        """Whether the cell can be run. Why one cannot stands in the summary alone."""
        if cell.spec is not None:
            folder.freeze(self._at(cell), lambda: config.values_to_yaml(cell.values))
            return True
        self.places[cell.id] = {"how": "refused"}
        return False

    def _remember(self, plan: Plan) -> None:
        for wave in plan.waves:
            together = not plan.groups[wave.group - 1].reason
            place = {
                "group": self.groups + wave.group,
                "wave": self.waves + wave.number,
                "how": "together" if together else "alone",
            }
            self.places |= {cell.id: place for cell in wave.cells}

    def _send(self, plan: Plan) -> None:
        for note in plan.notes:
            console.say(note)
        if self.engine:
            sent = [[self._at(cell) for cell in wave.cells] for wave in plan.waves]
            if sent:
                import_module(self.engine).send(sent, self.options)
        elif plan.groups:
            with execute.heavy("peftrun.models.base_cache").kept():
                self._run_here(plan)

    def _run_here(self, plan: Plan) -> None:
        spec = plan.groups[0].cells[0].spec
        assert spec is not None
        allowed = self.limits.now(spec)  # before there is a base in memory
        for number, group in enumerate(plan.groups, 1):
            console.say(self._heading(number, group, len(plan.groups)))
            run_cells.run([self._at(cell) for cell in group.cells], allowed, self.halving)
            self._sum_up("running")

    def _heading(self, number: int, group: Group, groups: int) -> str:
        label = self.labels[group.cells[0].numbers[0]]
        if not self.together:
            return f"cell {number} of {groups}: {label}"
        how = f"alone ({group.reason}): {label}" if group.reason else "together on one base"
        return f"group {number} of {groups}: {many(len(group.cells), 'cell')}, {how}"

    def _sum_up(self, status: str) -> dict[str, Any]:
        """Writes what came out so far, and returns it."""
        assert self.folder is not None
        planned = [
            summary.Planned(
                cell.id, cell.numbers, cell.values, composed.command(cell, self.team_dir),
                **{"how": "done before", **self.places.get(cell.id, {})}, error="\n".join(cell.problems) or None,
            )
            for cell in self.cells.values()
        ]  # fmt: skip
        finished = None if status == "running" else _now()
        seconds = round(time.perf_counter() - self.clock, 2)
        typed = shlex.join(["peftrun", *sys.argv[1:]])
        known = summary.Sweep(typed, status, self.started, seconds, finished, cells=planned)
        found = summary.write(self.folder, known)
        sweep_page.write(self.folder)
        return found

    def _outcome(self, batch: Sequence[Cell], jobs: int, first: int) -> tuple[list[float | None], SweepError | None]:
        assert self.folder is not None
        found = {cell.id: _record(self._at(cell)) for cell in batch if cell.id}
        reasons = [(cell, cell.problems or _reasons(found[cell.id])) for cell in batch]
        failed = [(cell, lines) for cell, lines in reasons if lines]
        whole = self._sum_up("failed" if failed else "completed")
        for line in ending.lines(whole, {cell.numbers[0] for cell in batch}, self.labels, self.folder):
            console.show(line)
        objectives: list[float | None] = [None] * jobs
        for cell in batch:
            for number in cell.numbers:
                if first <= number < first + jobs:
                    objectives[number - first] = _objective(found.get(cell.id, {}))
        return objectives, ending.fault(failed, self.labels, len(batch))


class _Unchecked:
    """Hydra's loader, but for the sweeper's look at each cell before the launch: they are all composed there, and faster."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The sweep's own configuration: what the sweeper asks for is thrown away."""
        return master_config


def _team_dir(master: DictConfig) -> str | None:
    sources = master.hydra.runtime.config_sources
    return next((str(one.path) for one in sources if one.provider == "command-line"), None)


def _record(cell: Path) -> dict[str, Any]:
    """The record of a cell; none where it is not there, or damaged."""
    try:
        return atomic_files.read_json(cell / RECORD)
    except PeftrunError:
        return {}


def _reasons(record: dict[str, Any]) -> Sequence[str]:
    """Why a cell has failed; nothing if it has not."""
    if record.get("status") in (folder.COMPLETED, folder.STOPPED):
        return ()
    return str(record.get("error") or "did not come to its end, and left no reason").splitlines()[:1]


def _objective(record: dict[str, Any]) -> float | None:
    value = record.get("objective")
    done = record.get("status") in (folder.COMPLETED, folder.STOPPED)
    return float(value) if done and isinstance(value, int | float) and math.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
