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
from peftrun.formatting import format_count
from peftrun.io import atomic_files
from peftrun.planning import throughput
from peftrun.planning.joint_memory import read_limits
from peftrun.runs import execute
from peftrun.sweep import cells as composed
from peftrun.sweep import ending, folder, groups, halving_options, plan_preview, planner, run_cells, summary
from peftrun.sweep.cells import Cell
from peftrun.sweep.groups import Group
from peftrun.sweep.planner import SweepPlan
from peftrun.sweep.report import page as sweep_page


class SharedBaseSweep:
    """One command's sweep. A search hands its cells over in several batches, which go into one folder."""

    def __init__(
        self, context: HydraContext, master: DictConfig, options: dict[str, Any], engine: str | None, *, together: bool
    ) -> None:
        self.loader: Any = context.config_loader
        self.master, self.options, self.engine, self.together = master, options, engine, together
        self.limits = read_limits(options.get("memory_limit"), options.get("max_cells"), engine is None)
        self.halving = halving_options.read_halving(options.get("halving"), engine)
        self.plans_only = plan_preview.is_plan_only(master)
        self.team_dir = _find_team_dir(master)
        self.named = Path(str(master.hydra.sweep.dir)).absolute()
        self.dated = "${now:" in str(OmegaConf.to_container(master.hydra.sweep, resolve=False))
        self.folder: Path | None = None
        self.cells: dict[str, Cell] = {}
        self.labels: dict[int, str] = {}
        self.places: dict[str, dict[str, Any]] = {}
        self.changed: dict[str, list[str]] = {}  # cells that are done → what they were made from and is another now
        self.groups = self.waves = 0
        self.started, self.clock = _format_now(), time.perf_counter()
        context.config_loader = _UncheckedLoader(context.config_loader)  # type: ignore[assignment]
        if self.plans_only:
            plan_preview.write_nothing(master)

    def run(self, jobs: Sequence[Sequence[str]], first: int) -> tuple[list[float | None], SweepError | None]:
        """The objective of each job, None where it has none, and what was at fault in those that failed.

        Raises: PeftrunError: the sweep cannot run. compose.REFUSALS: no cell can be composed.
        """
        try:
            asked = [[plan_preview.replace_action(text) for text in job] for job in jobs] if self.plans_only else jobs
            batch = composed.compose_cells(self.loader, self.master, asked, first, self.team_dir)
            if not any(cell.spec for cell in batch):
                raise SweepError(*dict.fromkeys(line for cell in batch for line in cell.problems))
        except Exception:
            self._remove_empty_folder()
            raise
        self.labels |= composed.label_cells(batch)
        if self.plans_only:
            self._remove_empty_folder()
            self._show_plan(batch)
            return [None] * len(jobs), ending.build_sweep_error(
                [(cell, cell.problems) for cell in batch if cell.problems], self.labels, len(batch), planned=True
            )
        self._choose_folder(batch)
        assert self.folder is not None
        with folder.lock_folder(self.folder):
            self._run_batch(batch)
            return self._collect_outcome(batch, len(jobs), first)

    def _remove_empty_folder(self) -> None:
        if self.plans_only:
            shutil.rmtree(str(self.master.hydra.sweep.dir), ignore_errors=True)
        elif self.folder is None:
            folder.remove_new_folder(self.named)

    def _show_plan(self, batch: Sequence[Cell]) -> None:
        where = folder.choose_folder(self.named, self.dated, [cell.id for cell in batch if cell.id])
        self._check_inputs(where, batch)
        status = {cell.id: "refused" if cell.problems else folder.read_status(where / cell.id) for cell in batch}
        ready = [cell for cell in batch if cell.spec is not None and not self._is_done(where, cell.id)]
        plan_preview.show_plan(batch, ready, self.limits, status, self.labels)

    def _choose_folder(self, batch: Sequence[Cell]) -> None:
        """Chooses the folder, once; says what is known of the cells already."""
        for cell in batch:
            if len(cell.numbers) > 1:
                numbers = ", ".join(map(str, cell.numbers))
                console.print_info(f"cells {numbers} are identical after resolution ({cell.id}): run once")
        refused = [cell for cell in batch if cell.problems]
        if refused:
            console.print_warning(
                f"{len(refused)} of {len(batch)} cells are refused, the others run; first: {refused[0].problems[0]}"
            )
        ids, first = [cell.id for cell in batch if cell.id], self.folder is None
        if self.folder is None:
            self.folder = folder.choose_folder(self.named, self.dated, ids)
            if self.folder != self.named:
                folder.remove_new_folder(self.named)
                self.master.hydra.sweep.dir = str(self.folder)
        self._check_inputs(self.folder, batch)
        done = sum(self._is_done(self.folder, one) for one in ids)
        if done or (first and self.folder != self.named):
            console.print_info(f"continuing {console.shorten_path(self.folder)}: {done} of {len(batch)} cells are done")

    def _run_batch(self, batch: Sequence[Cell]) -> None:
        ready = []
        for cell in batch:
            known = self.cells.setdefault(cell.id or f"number {cell.numbers[0]}", cell)
            if known is not cell:
                known.numbers += cell.numbers
            if self._freeze_cell(cell) and not self._is_done(self._at(cell).parent, cell.id):
                if self.changed.pop(cell.id, None):
                    folder.set_aside(self._at(cell))
                ready.append(cell)
        paces = throughput.read_throughputs([cell.spec for cell in ready if cell.spec])
        plan = planner.plan_sweep(groups.group_cells(ready, self.together), self.limits, paces.lengths)
        self._record_places(plan)
        self._write_summary("running")
        try:
            self._send(plan)
        except BaseException as error:
            self._write_summary("interrupted" if isinstance(error, KeyboardInterrupt) else "stopped")
            raise
        finally:
            self.groups, self.waves = self.groups + len(plan.groups), self.waves + len(plan.waves)

    def _check_inputs(self, where: Path, batch: Sequence[Cell]) -> None:
        """Says which cells were made from other rows, or another base, than those that are there now."""
        self.changed = {
            cell.id: names
            for cell in batch
            if cell.spec and (names := run_cells.find_changed_cell_inputs(where / cell.id, cell.spec))
        }
        told = dict.fromkeys(name for names in self.changed.values() for name in names)
        if told:
            cells = format_count(len(self.changed), "cell")
            console.print_warning(
                f"{cells} of {len(batch)} were made before these changed, and are run again: {', '.join(told)}"
            )

    def _is_done(self, where: Path, cell: str) -> bool:
        """Whether a cell is not run again; one that halving has stopped goes on once there is no halving."""
        status = folder.read_status(where / cell)
        done = status == folder.COMPLETED or (status == folder.STOPPED and self.halving is not None)
        return done and cell not in self.changed

    def _at(self, cell: Cell) -> Path:
        assert self.folder is not None
        return self.folder / cell.id

    def _freeze_cell(self, cell: Cell) -> bool:
        """Whether the cell can be run. Why one cannot stands in the summary alone."""
        if cell.spec is not None:
            folder.freeze_config(self._at(cell), lambda: config.values_to_yaml(cell.values))
            return True
        self.places[cell.id] = {"how": "refused"}
        return False

    def _record_places(self, plan: SweepPlan) -> None:
        for wave in plan.waves:
            together = not plan.groups[wave.group - 1].reason
            place = {
                "group": self.groups + wave.group,
                "wave": self.waves + wave.number,
                "how": "together" if together else "alone",
            }
            self.places |= {cell.id: place for cell in wave.cells}

    def _send(self, plan: SweepPlan) -> None:
        for note in plan.notes:
            console.print_info(note)
        if self.engine:
            sent = [[self._at(cell) for cell in wave.cells] for wave in plan.waves]
            if sent:
                import_module(self.engine).send(sent, self.options)
        elif plan.groups:
            with execute.import_quietly("peftrun.models.base_cache").keep_base_cached():
                self._run_here(plan)

    def _run_here(self, plan: SweepPlan) -> None:
        spec = plan.groups[0].cells[0].spec
        assert spec is not None
        allowed = self.limits.now(spec)  # before there is a base in memory
        for number, group in enumerate(plan.groups, 1):
            console.print_info(self._format_heading(number, group, len(plan.groups)))
            run_cells.run([self._at(cell) for cell in group.cells], allowed, self.halving)
            self._write_summary("running")

    def _format_heading(self, number: int, group: Group, groups: int) -> str:
        label = self.labels[group.cells[0].numbers[0]]
        if not self.together:
            return f"cell {number} of {groups}: {label}"
        how = f"alone ({group.reason}): {label}" if group.reason else "together on one base"
        return f"group {number} of {groups}: {format_count(len(group.cells), 'cell')}, {how}"

    def _write_summary(self, status: str) -> dict[str, Any]:
        """Writes what came out so far, and returns it."""
        assert self.folder is not None
        planned = [
            summary.PlannedCell(
                cell.id, cell.numbers, cell.values, composed.format_command(cell, self.team_dir),
                **{"how": "done before", **self.places.get(cell.id, {})}, error="\n".join(cell.problems) or None,
            )
            for cell in self.cells.values()
        ]  # fmt: skip
        finished = None if status == "running" else _format_now()
        seconds = round(time.perf_counter() - self.clock, 2)
        typed = shlex.join(["peftrun", *sys.argv[1:]])
        known = summary.SweepState(typed, status, self.started, seconds, finished, cells=planned)
        found = summary.write_summary(self.folder, known)
        sweep_page.write_sweep_report(self.folder)
        return found

    def _collect_outcome(
        self, batch: Sequence[Cell], jobs: int, first: int
    ) -> tuple[list[float | None], SweepError | None]:
        assert self.folder is not None
        found = {cell.id: _read_record(self._at(cell)) for cell in batch if cell.id}
        reasons = [(cell, cell.problems or _list_reasons(found[cell.id])) for cell in batch]
        failed = [(cell, lines) for cell, lines in reasons if lines]
        whole = self._write_summary("failed" if failed else "completed")
        for line in ending.format_ending(whole, {cell.numbers[0] for cell in batch}, self.labels, self.folder):
            console.print_result(line)
        objectives: list[float | None] = [None] * jobs
        for cell in batch:
            for number in cell.numbers:
                if first <= number < first + jobs:
                    objectives[number - first] = _read_objective(found.get(cell.id, {}))
        return objectives, ending.build_sweep_error(failed, self.labels, len(batch))


class _UncheckedLoader:
    """Hydra's loader, but for the sweeper's look at each cell before the launch: they are all composed there, and faster."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The sweep's own configuration: what the sweeper asks for is thrown away."""
        return master_config


def _find_team_dir(master: DictConfig) -> str | None:
    sources = master.hydra.runtime.config_sources
    return next((str(one.path) for one in sources if one.provider == "command-line"), None)


def _read_record(cell: Path) -> dict[str, Any]:
    """The record of a cell; none where it is not there, or damaged."""
    try:
        return atomic_files.read_json(cell / RECORD)
    except PeftrunError:
        return {}


def _list_reasons(record: dict[str, Any]) -> Sequence[str]:
    """Why a cell has failed; nothing if it has not."""
    if record.get("status") in (folder.COMPLETED, folder.STOPPED):
        return ()
    return str(record.get("error") or "did not come to its end, and left no reason").splitlines()[:1]


def _read_objective(record: dict[str, Any]) -> float | None:
    value = record.get("objective")
    done = record.get("status") in (folder.COMPLETED, folder.STOPPED)
    return float(value) if done and isinstance(value, int | float) and math.isfinite(value) else None


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
