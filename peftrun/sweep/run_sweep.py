"""One sweep: compose all cells, choose the folder, freeze configs, group, run, summarize. Light; training code is imported when it runs."""

import math
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from peftrun import console
from peftrun.artifacts import records
from peftrun.config import values as config
from peftrun.errors import PeftrunError, SweepError
from peftrun.formatting import format_count
from peftrun.planning import throughput
from peftrun.planning.joint_memory import read_limits
from peftrun.runs import execute
from peftrun.sweep import cells as composed
from peftrun.sweep import (
    cluster,
    ending,
    folder,
    groups,
    halving_options,
    local_workers,
    plan_preview,
    planner,
    run_cells,
    summary,
)
from peftrun.sweep import devices as sweep_devices
from peftrun.sweep.cells import Cell
from peftrun.sweep.devices import WorkerDevice
from peftrun.sweep.planner import SweepPlan
from peftrun.sweep.report import page as sweep_page


class SharedBaseSweep:
    """The sweep of one command. A search (Optuna) hands over its cells in several batches, which go into the same folder.

    Attributes:
        requested_dir: hydra.sweep.dir as the command or the default gives it.
        is_dated: whether requested_dir contains the time, so that an earlier sweep may be continued instead.
        labels: first number of a cell → the overrides in which it differs from the others.
        placements: cell id → group, batch and how it runs, for the summary.
        devices: those that each take a worker; empty: cells run in this process, or on a cluster.
        changed_inputs: id of a finished cell → its inputs (data, base model) that have changed since.
    """

    def __init__(
        self, context: HydraContext, master: DictConfig, options: dict[str, Any], engine: str | None, *, together: bool
    ) -> None:
        self.loader: Any = context.config_loader
        self.master, self.options, self.engine, self.together = master, options, engine, together
        self.limits = read_limits(options.get("memory_limit"), options.get("max_cells"), engine is None)
        self.halving = halving_options.read_halving(options.get("halving"), engine)
        self.device_choice = sweep_devices.read_choice(options.get("devices"), engine)
        self.devices: list[WorkerDevice] = []
        self.max_retries = 0 if engine else cluster.read_int_option(options, "shared_base", "max_retries", 0) or 0
        self.plans_only = plan_preview.is_plan_only(master)
        sources = master.hydra.runtime.config_sources
        self.team_dir = next((str(source.path) for source in sources if source.provider == "command-line"), None)
        self.requested_dir = Path(str(master.hydra.sweep.dir)).absolute()
        self.is_dated = "${now:" in str(OmegaConf.to_container(master.hydra.sweep, resolve=False))
        self.folder: Path | None = None
        self.cells: dict[str, Cell] = {}
        self.labels: dict[int, str] = {}
        self.placements: dict[str, dict[str, Any]] = {}
        self.changed_inputs: dict[str, list[str]] = {}
        self.group_count = self.batch_count = 0  # of earlier batches of a search: numbers go on counting
        self.started, self.start_clock = _format_now(), time.perf_counter()
        context.config_loader = _UncheckedLoader(context.config_loader)  # type: ignore[assignment]
        if self.plans_only:
            plan_preview.write_nothing(master)

    def run(self, jobs: Sequence[Sequence[str]], first: int) -> tuple[list[float | None], SweepError | None]:
        """Run a batch of cells. Returns the objective of each job (None: it has none) and the errors of failed cells.

        Raises: PeftrunError: the sweep cannot run. compose.REFUSALS: no cell can be composed.
        """
        try:
            overrides = (
                [[plan_preview.replace_action(text) for text in job] for job in jobs] if self.plans_only else jobs
            )
            batch = composed.compose_cells(
                self.loader, self.master, overrides, first, self.team_dir, downloads=not self.plans_only
            )
            if not any(cell.spec for cell in batch):
                raise SweepError(*dict.fromkeys(line for cell in batch for line in cell.problems))
            specs = [cell.spec for cell in batch if cell.spec]
            self.devices = sweep_devices.find_devices(self.device_choice, specs, self.halving)
        except Exception:
            self._remove_empty_folder()
            raise
        self.labels |= composed.label_cells(batch)
        if self.plans_only:
            self._remove_empty_folder()
            sweep_dir = folder.choose_folder(self.requested_dir, self.is_dated, [cell.id for cell in batch if cell.id])
            self._check_inputs(sweep_dir, batch)
            status = {
                cell.id: "refused" if cell.problems else folder.read_status(sweep_dir / cell.id) for cell in batch
            }
            ready = [cell for cell in batch if cell.spec is not None and not self._is_done(sweep_dir, cell.id)]
            plan_preview.show_plan(batch, ready, self.limits, status, self.labels, devices=self.devices)
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
            folder.remove_new_folder(self.requested_dir)

    def _choose_folder(self, batch: Sequence[Cell]) -> None:
        """Choose the folder with the first batch, and report duplicate, refused and finished cells."""
        for cell in batch:
            if len(cell.numbers) > 1:
                numbers = ", ".join(map(str, cell.numbers))
                console.print_info(f"cells {numbers} are identical after resolution ({cell.id}): run once")
        refused = [cell for cell in batch if cell.problems]
        if refused:
            console.print_warning(
                f"{len(refused)} of {len(batch)} cells are refused, the others run; first: {refused[0].problems[0]}"
            )
        ids, is_first_batch = [cell.id for cell in batch if cell.id], self.folder is None
        if self.folder is None:
            self.folder = folder.choose_folder(self.requested_dir, self.is_dated, ids)
            if self.folder != self.requested_dir:
                folder.remove_new_folder(self.requested_dir)
                self.master.hydra.sweep.dir = str(self.folder)  # Hydra writes its own files there
        self._check_inputs(self.folder, batch)
        done = sum(self._is_done(self.folder, cell_id) for cell_id in ids)
        if done or (is_first_batch and self.folder != self.requested_dir):
            console.print_info(f"continuing {console.shorten_path(self.folder)}: {done} of {len(batch)} cells are done")

    def _run_batch(self, batch: Sequence[Cell]) -> None:
        ready = []
        for cell in batch:
            known_cell = self.cells.setdefault(cell.id or f"number {cell.numbers[0]}", cell)
            if known_cell is not cell:  # a search proposes the same values again
                known_cell.numbers += cell.numbers
            if cell.spec is None:  # the reason is in the summary alone: a refused cell has no folder
                self.placements[cell.id] = {"how": "refused"}
                continue
            cell_dir = self._get_cell_dir(cell)
            folder.freeze_config(cell_dir, partial(config.values_to_yaml, cell.values))
            if not self._is_done(cell_dir.parent, cell.id):
                if self.changed_inputs.pop(cell.id, None):
                    folder.set_aside(cell_dir)
                ready.append(cell)
        throughputs = throughput.read_throughputs([cell.spec for cell in ready if cell.spec])
        plan = planner.plan_sweep(
            groups.group_cells(ready, self.together), self.limits, throughputs, [device.name for device in self.devices]
        )
        for wave in plan.waves:
            placement = {
                "group": self.group_count + wave.group,
                "wave": self.batch_count + wave.number,
                "how": "alone" if plan.groups[wave.group - 1].reason else "together",
            }
            self.placements |= {cell.id: placement for cell in wave.cells}
        self._write_summary("running")
        try:
            self._run_plan(plan)
        except BaseException as error:
            self._write_summary("interrupted" if isinstance(error, KeyboardInterrupt) else "stopped")
            raise
        finally:
            self.group_count += len(plan.groups)
            self.batch_count += len(plan.waves)

    def _check_inputs(self, sweep_dir: Path, batch: Sequence[Cell]) -> None:
        """Find finished cells whose rows or base model have changed since, and warn about them."""
        self.changed_inputs = {
            cell.id: names
            for cell in batch
            if cell.spec and (names := run_cells.find_changed_cell_inputs(sweep_dir / cell.id, cell.spec))
        }
        inputs = dict.fromkeys(name for names in self.changed_inputs.values() for name in names)
        if inputs:
            cells = format_count(len(self.changed_inputs), "cell")
            console.print_warning(
                f"{cells} of {len(batch)} were made before these changed, and are run again: {', '.join(inputs)}"
            )

    def _is_done(self, sweep_dir: Path, cell_id: str) -> bool:
        """Whether a cell is not run again; a cell stopped by halving goes on once there is no halving."""
        status = folder.read_status(sweep_dir / cell_id)
        done = status == folder.COMPLETED or (status == folder.STOPPED and self.halving is not None)
        return done and cell_id not in self.changed_inputs

    def _get_cell_dir(self, cell: Cell) -> Path:
        assert self.folder is not None
        return self.folder / cell.id

    def _run_plan(self, plan: SweepPlan) -> None:
        for note in plan.notes:
            console.print_info(note)
        if self.engine:
            # A worker takes a planned batch, not a whole group: it knows no memory limit of its own.
            cell_dirs = [[self._get_cell_dir(cell) for cell in wave.cells] for wave in plan.waves]
            if cell_dirs:
                import_module(self.engine).send(cell_dirs, self.options)
        elif plan.groups:
            spec = plan.groups[0].cells[0].spec
            assert spec is not None
            limits = plan.allowed.now(spec)  # free memory before there is a base model in it
            if self.devices:
                group_dirs = [[self._get_cell_dir(cell) for cell in group.cells] for group in plan.groups]
                local_workers.send(group_dirs, self.devices, limits, self.max_retries)
                return
            with execute.import_quietly("peftrun.models.base_cache").keep_base_cached():
                for number, group in enumerate(plan.groups, 1):
                    label, total = self.labels[group.cells[0].numbers[0]], len(plan.groups)
                    how = f"alone ({group.reason}): {label}" if group.reason else "together on one base model"
                    size = format_count(len(group.cells), "cell")
                    console.print_info(
                        f"group {number} of {total}: {size}, {how}"
                        if self.together
                        else f"cell {number} of {total}: {label}"
                    )
                    run_cells.run([self._get_cell_dir(cell) for cell in group.cells], limits, self.halving)
                    self._write_summary("running")

    def _write_summary(self, status: str) -> dict[str, Any]:
        """Write sweep.json, sweep.csv and report.html with the results so far. Returns the summary."""
        assert self.folder is not None
        planned = [
            summary.PlannedCell(
                cell.id, cell.numbers, cell.values, composed.format_command(cell, self.team_dir),
                **{"how": "done before", **self.placements.get(cell.id, {})}, error="\n".join(cell.problems) or None,
            )
            for cell in self.cells.values()
        ]  # fmt: skip
        finished = None if status == "running" else _format_now()
        seconds = round(time.perf_counter() - self.start_clock, 2)
        command = shlex.join(["peftrun", *sys.argv[1:]])
        state = summary.SweepState(command, status, self.started, seconds, finished, cells=planned)
        written = summary.write_summary(self.folder, state)
        sweep_page.write_sweep_report(self.folder)
        return written

    def _collect_outcome(
        self, batch: Sequence[Cell], jobs: int, first: int
    ) -> tuple[list[float | None], SweepError | None]:
        """The objective of each of `jobs` jobs, the first of which has number `first`, and the errors of failed cells."""
        assert self.folder is not None
        failed: list[tuple[Cell, Sequence[str]]] = []
        objectives: list[float | None] = [None] * jobs
        for cell in batch:
            record: dict[str, Any] = {}
            with suppress(PeftrunError):  # it is missing or damaged
                record = records.read_record(self._get_cell_dir(cell)) if cell.id else {}
            done = record.get("status") in (folder.COMPLETED, folder.STOPPED)
            if cell.problems:
                failed.append((cell, cell.problems))
            elif not done:
                error = str(record.get("error") or "did not finish, and left no reason")
                failed.append((cell, error.splitlines()[:1]))
            value = record.get("objective")
            if not (done and isinstance(value, int | float) and math.isfinite(value)):
                continue
            for number in cell.numbers:
                if first <= number < first + jobs:
                    objectives[number - first] = float(value)
        final = self._write_summary("failed" if failed else "completed")
        for line in ending.format_ending(final, {cell.numbers[0] for cell in batch}, self.labels, self.folder):
            console.print_result(line)
        return objectives, ending.build_sweep_error(failed, self.labels, len(batch))


class _UncheckedLoader:
    """Hydra's loader without the sweeper's check of each cell before the launch: all cells are composed there anyway, and faster."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The sweep's own configuration, whatever the overrides: the sweeper discards the result."""
        return master_config


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
