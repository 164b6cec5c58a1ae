"""Many adapters trained on one base at once; each cell's run folder is what its lone run would have left."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from peftrun import console, tasks
from peftrun.adapters import attach, save
from peftrun.adapters.joint.stacked_lora import StackedLora
from peftrun.artifacts import classifier_head
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.artifacts.sweep_folder import format_cell_title
from peftrun.config import usage
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.run import RunSpec
from peftrun.errors import MemoryShortageError, PeftrunError
from peftrun.models import base_cache, device, placement
from peftrun.models.base import LoadedBase
from peftrun.models.device import Device
from peftrun.planning import memory_fit
from peftrun.planning.joint_memory import Limits, choose_cells_per_step
from peftrun.result import RunResult, TrainAlone
from peftrun.trackers import lifecycle
from peftrun.training import checkpoints, fit, lengths
from peftrun.training import session as jobs
from peftrun.training.joint import cell_trainer
from peftrun.training.joint.progress import Progress
from peftrun.training.joint.scheduler import CellScheduler, RungPause
from peftrun.training.joint.step import JointStep
from peftrun.training.joint.successive_halving import SuccessiveHalving
from peftrun.training.session import TrainingSession

BeginCallback = Callable[[int], None]
FinishCallback = Callable[[int, RunResult | Exception | TrainAlone], None]


def run(
    specs: list[RunSpec],
    out_dirs: list[Path],
    allowed: Limits,
    halving: dict[str, int] | None,
    *,
    begin: BeginCallback,
    finish: FinishCallback,
) -> None:
    """Trains every cell. `begin` is called with a cell's number before its first step; `finish` with that and its result, what was at fault,
    or why it must be run alone, as soon as that is known.

    Args: allowed: what the cells in one step may take; the others follow as seats become free. halving: see `Halving`; None: all run to their ends.
    Raises: PeftrunError: the base cannot be loaded, which no cell outlives.
    """
    cells = _resolve_devices(specs, finish)
    if not cells:
        return
    place = next(iter(cells.values()))
    console.print_info(place.note)
    with memory_fit.suggest_on_shortage(specs[0]):
        base = base_cache.load_cached_base(specs[0].model, place, None, classifier_head.get_task_head(specs[0].task))
    group = _CellGroup(base, place, begin, finish, SuccessiveHalving(**halving) if halving else None)
    for cell, own in cells.items():
        if own.dtype == place.dtype:
            group.admit_cell(cell, specs[cell], out_dirs[cell])
        else:  # a cell's lone run would not have the dtype of the others
            finish(cell, TrainAlone(f"its base fits in {own.dtype_name}, that of the others in {place.dtype_name}"))
    group.train(allowed)


def _resolve_devices(specs: list[RunSpec], finish: FinishCallback) -> dict[int, Device]:
    """The device of each cell with the dtype that its lone run would have; cells that do not fit by themselves are finished."""
    place, found = device.resolve_device(specs[0].device), {}
    for cell, spec in enumerate(specs):
        try:
            with memory_fit.suggest_on_shortage(spec):
                found[cell] = placement.fit_device(place, spec)
        except MemoryShortageError as fault:
            finish(cell, fault)
    return found


class _CellGroup:
    """Cells on one base."""

    def __init__(
        self,
        base: LoadedBase,
        place: Any,
        begin: BeginCallback,
        finish: FinishCallback,
        halving: SuccessiveHalving | None,
    ) -> None:
        self.base, self.place, self.begin, self.finish, self.halving = base, place, begin, finish, halving
        self.jobs: dict[int, TrainingSession] = {}
        self.before: dict[int, dict[str, float]] = {}
        self.kept: list[tuple[Any, Any]] = []  # tasks with their rows
        self.measured: dict[tuple[int, int, int], tuple[dict[str, float], TrainingSession]] = {}

    def admit_cell(self, cell: int, spec: RunSpec, out_dir: Path) -> None:
        """The cell's rows are there and the base is measured on them, once for all cells that share them."""
        try:
            with checkpoints.taken_back(out_dir):
                checkpoint = jobs.resume_checkpoint(spec, out_dir)
                lifecycle.start_run_tracker(spec, out_dir, checkpoints.get_step(checkpoint) if checkpoint else 0)
                kind, name = tasks.import_task_module(spec.task.kind), format_cell_title(out_dir)
                job = TrainingSession(
                    spec, out_dir, checkpoint, self.place, self.base, kind, self._load_rows(spec), name
                )
                jobs.write_first_rows(job)
                self.before[cell] = self._evaluate_before(job)
        except PeftrunError as fault:
            self.finish(cell, fault)
            return
        self.jobs[cell] = job

    def _load_rows(self, spec: RunSpec) -> Any:
        found = next((rows for task, rows in self.kept if task == spec.task), None)
        if found is None:
            found = jobs.load_rows(spec, self.base)
            self.kept.append((spec.task, found))
        return found

    def _evaluate_before(self, job: TrainingSession) -> dict[str, float]:
        assert isinstance(job.spec.action, TrainAction)
        if not job.spec.action.evaluate_before:
            return {}
        key = (id(job.rows), job.spec.trainer.per_device_eval_batch_size, job.spec.action.samples)
        if key not in self.measured:
            self.measured[key] = (jobs.evaluate(job, self.base.model, "before"), job)
        found, measured = self.measured[key]
        job.details, job.answered = dict(measured.details), dict(measured.answered)
        return found

    def train(self, allowed: Limits) -> None:
        """All cells, to their ends; the base is as it was afterwards."""
        names = {f"cell{cell}": (job.spec.lora, job.spec.seed) for cell, job in self.jobs.items()}
        net, refused = attach.attach_jointly(self.base, names)
        for name, reason in refused.items():
            self.finish(int(name.removeprefix("cell")), reason)
        ready = [cell for cell in self.jobs if f"cell{cell}" not in refused]
        if not ready:
            return
        try:
            self._train_jointly(net, ready, self._choose_cells_per_step(ready, allowed))
        finally:
            net.unload()

    def _choose_cells_per_step(self, ready: list[int], allowed: Limits) -> int:
        """How many train in one step, which is said."""
        found = {id(job.rows): job for job in map(self.jobs.__getitem__, ready)}
        known = {rows: lengths.find_longest(job.rows, job.spec) for rows, job in found.items()}
        runs = [(self._resolve_spec(self.jobs[cell].spec), known[id(self.jobs[cell].rows)]) for cell in ready]
        at_once, said = choose_cells_per_step(runs, allowed)
        console.print_info(said)
        return at_once

    def _bind_callbacks(self, cell: int) -> tuple[Callable[[], None], Callable[[RunResult | Exception], None]]:
        return functools.partial(self.begin, cell), functools.partial(self.finish, cell)

    def _resolve_spec(self, spec: RunSpec) -> RunSpec:
        plain = usage.strip_tracking(spec)  # what is only estimated by is not used
        return replace(plain, device=replace(plain.device, dtype=self.place.dtype_name))

    def _train_jointly(self, net: Any, ready: list[int], at_once: int) -> None:
        joint = StackedLora(net, [f"cell{cell}" for cell in ready])
        first = self.jobs[ready[0]]
        by_products = all(jobs.uses_eager_attention(self.jobs[cell]) for cell in ready)
        room = JointStep(joint, first.spec.task.kind, self.base.tokenizer.pad_token_id, by_products)
        company = CellScheduler(room, at_once, self.halving)
        bodies = {
            place: _CellRun(self.jobs[cell], place, company, self.before[cell], *self._bind_callbacks(cell)).run
            for place, cell in enumerate(ready)
        }
        try:
            with Progress([self.jobs[cell] for cell in ready]) as progress:
                company.run(bodies, progress.step)
        finally:
            joint.close()


@dataclass
class _CellRun:
    """One cell from its first step to its record."""

    job: TrainingSession
    place: int  # of its adapter among the joint ones
    scheduler: CellScheduler
    before: dict[str, float]
    begin: Callable[[], None]
    finish: Callable[[RunResult | Exception], None]
    verdict: str = ""  # why it was stopped early

    def run(self) -> None:
        """Never raises for what is the cell's own fault."""
        self.begin()
        try:
            self.finish(self._train_cell())
        except Exception as fault:
            self.finish(fault)

    def _train_cell(self) -> RunResult:
        job, place, room = self.job, self.place, self.scheduler.joint_step
        joint = room.joint
        set_seed(job.spec.seed)
        own = cell_trainer.AdapterParameters(joint.own[place], job.base.model.config, lambda: joint.clear(place))
        keep = (
            lambda: joint.tensors(place),
            lambda given: joint.fill(place, given),
            joint.net.peft_config[joint.names[place]],
        )
        maker = cell_trainer.build_trainer_factory(
            cell=place, kind=job.spec.task.kind, ask=self.scheduler.request_step, measure=room.evaluate_batch,
            draws=self.scheduler.process_states[place].draws, keep=keep, rung=self.scheduler.is_rung, pause=self._wait_at_rung,
        )  # fmt: skip
        fitted = jobs.fit_cell(job, own, maker)
        joint.apart(place)
        return self._build_stopped_result(fitted) if self.verdict else self._save_finished(fitted)

    def _wait_at_rung(self, step: int, score: float, measure: str) -> bool:
        answer: RungPause = self.scheduler.request_step(RungPause(self.place, step, score, measure))
        self.verdict = "" if answer.go_on else f"at step {step} of {self._count_steps()}: {answer.verdict}"
        return answer.go_on

    def _count_steps(self) -> int:
        return fit.count_steps(self.job.spec.trainer, len(self.job.rows.train))

    def _build_stopped_result(self, fitted: fit.FitResult) -> RunResult:
        counts = self.scheduler.joint_step.joint.counts(self.place)
        found = jobs.build_result(self.job, fitted, self.before, {}, counts)
        found.status, found.facts["stopped"] = "stopped", self.verdict
        return found

    def _save_finished(self, fitted: Any) -> RunResult:
        job, joint, target = self.job, self.scheduler.joint_step.joint, self.job.out_dir / ADAPTER
        learned = tasks.describe_training_data(job.spec.task, job.rows)
        with joint.alone(self.place) as name:
            after = jobs.evaluate(job, joint.net, "after")
            save.save(joint.net, job.base, target, fresh=set(), names=[name], made_of=learned, top=name)
        found = jobs.build_result(job, fitted, self.before, after, joint.counts(self.place))
        found.facts["together"] = {
            "cells": len(joint.names),
            "seconds": round(self.scheduler.get_seconds(self.place), 2),
        }
        return jobs.add_artifacts(job, found)
