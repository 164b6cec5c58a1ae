"""Many adapters trained on one base at once; each cell's run folder is what its lone run would have left."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from peftrun import console, tasks
from peftrun.adapters import attach, save
from peftrun.adapters.joint.stacked_lora import Joint
from peftrun.artifacts import classifier_head
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.artifacts.sweep_folder import cell_title
from peftrun.config import usage
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.run import RunSpec
from peftrun.errors import MemoryShortageError, PeftrunError
from peftrun.models import base_cache, device, placement
from peftrun.models.base import Base
from peftrun.models.device import Device
from peftrun.planning import memory_fit
from peftrun.planning.joint_memory import Limits, choose_cells_per_step
from peftrun.result import Apart, RunResult
from peftrun.trackers import lifecycle
from peftrun.training import checkpoints, fit, lengths
from peftrun.training import session as jobs
from peftrun.training.joint import cell_trainer
from peftrun.training.joint.progress import Progress
from peftrun.training.joint.scheduler import Company, Pause
from peftrun.training.joint.step import Room
from peftrun.training.joint.successive_halving import Halving
from peftrun.training.session import Job

Begin = Callable[[int], None]
Finish = Callable[[int, RunResult | Exception | Apart], None]


def run(
    specs: list[RunSpec],
    out_dirs: list[Path],
    allowed: Limits,
    halving: dict[str, int] | None,
    *,
    begin: Begin,
    finish: Finish,
) -> None:
    """Trains every cell. `begin` is called with a cell's number before its first step; `finish` with that and its result, what was at fault,
    or why it must be run alone, as soon as that is known.

    Args: allowed: what the cells in one step may take; the others follow as seats become free. halving: see `Halving`; None: all run to their ends.
    Raises: PeftrunError: the base cannot be loaded, which no cell outlives.
    """
    cells = _places(specs, finish)
    if not cells:
        return
    place = next(iter(cells.values()))
    console.say(place.note)
    with memory_fit.advising(specs[0]):
        base = base_cache.load_base(specs[0].model, place, None, classifier_head.of_task(specs[0].task))
    group = _Group(base, place, begin, finish, Halving(**halving) if halving else None)
    for cell, own in cells.items():
        if own.dtype == place.dtype:
            group.admit(cell, specs[cell], out_dirs[cell])
        else:  # a cell's lone run would not have the dtype of the others
            finish(cell, Apart(f"its base fits in {own.dtype_name}, that of the others in {place.dtype_name}"))
    group.train(allowed)


def _places(specs: list[RunSpec], finish: Finish) -> dict[int, Device]:
    """The device of each cell with the dtype that its lone run would have; cells that do not fit by themselves are finished."""
    place, found = device.resolve(specs[0].device), {}
    for cell, spec in enumerate(specs):
        try:
            with memory_fit.advising(spec):
                found[cell] = placement.settle(place, spec)
        except MemoryShortageError as fault:
            finish(cell, fault)
    return found


class _Group:
    """Cells on one base."""

    def __init__(self, base: Base, place: Any, begin: Begin, finish: Finish, halving: Halving | None) -> None:
        self.base, self.place, self.begin, self.finish, self.halving = base, place, begin, finish, halving
        self.jobs: dict[int, Job] = {}
        self.before: dict[int, dict[str, float]] = {}
        self.kept: list[tuple[Any, Any]] = []  # tasks with their rows
        self.measured: dict[tuple[int, int, int], tuple[dict[str, float], Job]] = {}

    def admit(self, cell: int, spec: RunSpec, out_dir: Path) -> None:
        """The cell's rows are there and the base is measured on them, once for all cells that share them."""
        try:
            with checkpoints.taken_back(out_dir):
                checkpoint = jobs.resumed(spec, out_dir)
                lifecycle.start(spec, out_dir, checkpoints.step_of(checkpoint) if checkpoint else 0)
                kind, name = tasks.of_kind(spec.task.kind), cell_title(out_dir)
                job = Job(spec, out_dir, checkpoint, self.place, self.base, kind, self._rows(spec), name)
                jobs.leave_rows(job)
                self.before[cell] = self._before(job)
        except PeftrunError as fault:
            self.finish(cell, fault)
            return
        self.jobs[cell] = job

    def _rows(self, spec: RunSpec) -> Any:
        found = next((rows for task, rows in self.kept if task == spec.task), None)
        if found is None:
            found = jobs.rows_of(spec, self.base)
            self.kept.append((spec.task, found))
        return found

    def _before(self, job: Job) -> dict[str, float]:
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
        net, refused = attach.together(self.base, names)
        for name, reason in refused.items():
            self.finish(int(name.removeprefix("cell")), reason)
        ready = [cell for cell in self.jobs if f"cell{cell}" not in refused]
        if not ready:
            return
        try:
            self._seat(net, ready, self._seats(ready, allowed))
        finally:
            net.unload()

    def _seats(self, ready: list[int], allowed: Limits) -> int:
        """How many train in one step, which is said."""
        found = {id(job.rows): job for job in map(self.jobs.__getitem__, ready)}
        known = {rows: lengths.of_longest(job.rows, job.spec) for rows, job in found.items()}
        runs = [(self._as_it_runs(self.jobs[cell].spec), known[id(self.jobs[cell].rows)]) for cell in ready]
        at_once, said = choose_cells_per_step(runs, allowed)
        console.say(said)
        return at_once

    def _told(self, cell: int) -> tuple[Callable[[], None], Callable[[RunResult | Exception], None]]:
        return functools.partial(self.begin, cell), functools.partial(self.finish, cell)

    def _as_it_runs(self, spec: RunSpec) -> RunSpec:
        plain = usage.plain(spec)  # what is only estimated by is not used
        return replace(plain, device=replace(plain.device, dtype=self.place.dtype_name))

    def _seat(self, net: Any, ready: list[int], at_once: int) -> None:
        joint = Joint(net, [f"cell{cell}" for cell in ready])
        first = self.jobs[ready[0]]
        by_products = all(jobs.by_products(self.jobs[cell]) for cell in ready)
        room = Room(joint, first.spec.task.kind, self.base.tokenizer.pad_token_id, by_products)
        company = Company(room, at_once, self.halving)
        bodies = {
            place: _Body(self.jobs[cell], place, company, self.before[cell], *self._told(cell)).run
            for place, cell in enumerate(ready)
        }
        try:
            with Progress([self.jobs[cell] for cell in ready]) as progress:
                company.run(bodies, progress.step)
        finally:
            joint.close()


@dataclass
class _Body:
    """One cell from its first step to its record."""

    job: Job
    place: int  # of its adapter among the joint ones
    company: Company
    before: dict[str, float]
    begin: Callable[[], None]
    finish: Callable[[RunResult | Exception], None]
    verdict: str = ""  # why it was stopped early

    def run(self) -> None:
        """Never raises for what is the cell's own fault."""
        self.begin()
        try:
            self.finish(self._trained())
        except Exception as fault:
            self.finish(fault)

    def _trained(self) -> RunResult:
        job, place, room = self.job, self.place, self.company.room
        joint = room.joint
        set_seed(job.spec.seed)
        own = cell_trainer.Own(joint.own[place], job.base.model.config, lambda: joint.clear(place))
        keep = (
            lambda: joint.tensors(place),
            lambda given: joint.fill(place, given),
            joint.net.peft_config[joint.names[place]],
        )
        maker = cell_trainer.maker(
            cell=place, kind=job.spec.task.kind, ask=self.company.ask, measure=room.measure,
            draws=self.company.worlds[place].draws, keep=keep, rung=self.company.is_rung, pause=self._pause,
        )  # fmt: skip
        fitted = jobs.fit_seated(job, own, maker)
        joint.apart(place)
        return self._stopped(fitted) if self.verdict else self._finished(fitted)

    def _pause(self, step: int, score: float, measure: str) -> bool:
        answer: Pause = self.company.ask(Pause(self.place, step, score, measure))
        self.verdict = "" if answer.go_on else f"at step {step} of {self._steps()}: {answer.verdict}"
        return answer.go_on

    def _steps(self) -> int:
        return fit.steps(self.job.spec.trainer, len(self.job.rows.train))

    def _stopped(self, fitted: fit.Fitted) -> RunResult:
        counts = self.company.room.joint.counts(self.place)
        found = jobs.result(self.job, fitted, self.before, {}, counts)
        found.status, found.facts["stopped"] = "stopped", self.verdict
        return found

    def _finished(self, fitted: Any) -> RunResult:
        job, joint, target = self.job, self.company.room.joint, self.job.out_dir / ADAPTER
        learned = tasks.learned_from(job.spec.task, job.rows)
        with joint.alone(self.place) as name:
            after = jobs.evaluate(job, joint.net, "after")
            save.save(joint.net, job.base, target, fresh=set(), names=[name], made_of=learned, top=name)
        found = jobs.result(job, fitted, self.before, after, joint.counts(self.place))
        found.facts["together"] = {"cells": len(joint.names), "seconds": round(self.company.cost(self.place), 2)}
        return jobs.told(job, found)
