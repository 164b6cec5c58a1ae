"""Train many adapters on one base model at once; each cell's run folder is what the cell trained alone would have written."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from peftrun import console, tasks
from peftrun.adapters import save
from peftrun.adapters.joint import attach_cells
from peftrun.adapters.joint.attach_cells import CellAdapter
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
from peftrun.tasks import own_functions
from peftrun.trackers import lifecycle
from peftrun.training import checkpoints, fit, lengths, session_result, start, uploads, validation_metrics
from peftrun.training import session as training_session
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
    limits: Limits,
    halving: dict[str, int] | None,
    *,
    begin: BeginCallback,
    finish: FinishCallback,
) -> None:
    """Trains every cell.

    Args:
        limits: memory and number of the cells in one step; the others start as running ones end.
        halving: arguments of `SuccessiveHalving`; None: all cells run to their ends.
        begin: called with a cell's number before its first step.
        finish: called with a cell's number and its result, its error, or why it must be trained alone, as soon as that is known.

    Raises: PeftrunError: the base model cannot be loaded, so no cell can be trained.
    """
    # Cell → device, with the dtype that the cell would have alone.
    first_device, devices = device.resolve_device(specs[0].device), dict[int, Device]()
    for cell, spec in enumerate(specs):
        try:
            with memory_fit.suggest_on_shortage(spec):
                devices[cell] = placement.fit_device(first_device, spec)
        except MemoryShortageError as error:
            finish(cell, error)
    if not devices:
        return
    # The base model is loaded once, in the dtype of the first cell.
    shared_device = next(iter(devices.values()))
    console.print_info(shared_device.note)
    with memory_fit.suggest_on_shortage(specs[0]):
        base = base_cache.load_cached_base(
            specs[0].model, shared_device, None, classifier_head.get_task_head(specs[0].task)
        )
    group = _CellGroup(base, shared_device, begin, finish, SuccessiveHalving(**halving) if halving else None)
    for cell, cell_device in devices.items():
        if cell_device.dtype == shared_device.dtype:
            group.admit_cell(cell, specs[cell], out_dirs[cell])
        else:  # trained alone, the cell would not have the dtype of the others
            reason = f"its base fits in {cell_device.dtype_name}, that of the others in {shared_device.dtype_name}"
            finish(cell, TrainAlone(reason))
    group.train(limits)


class _CellGroup:
    """Cells on one base model.

    Attributes:
        sessions, before: cell → its session, and its metrics before training.
        rows: (task, rows) of all tasks so far: cells with equal tasks share their rows.
        evaluated: (rows, parent, batch size, samples) → metrics of the base model or the parent, and the session that computed them.
    """

    def __init__(
        self,
        base: LoadedBase,
        shared_device: Any,
        begin: BeginCallback,
        finish: FinishCallback,
        halving: SuccessiveHalving | None,
    ) -> None:
        self.base, self.device, self.begin, self.finish, self.halving = base, shared_device, begin, finish, halving
        self.sessions: dict[int, TrainingSession] = {}
        self.before: dict[int, dict[str, float]] = {}
        self.rows: list[tuple[Any, Any]] = []
        self.evaluated: dict[tuple[Any, ...], tuple[dict[str, float], TrainingSession]] = {}

    def admit_cell(self, cell: int, spec: RunSpec, out_dir: Path) -> None:
        """Prepares a cell: its rows, and the base model's metrics on them, both shared with cells of the same task."""
        try:
            with checkpoints.remove_copies_on_error(out_dir):
                checkpoint = training_session.resume_checkpoint(spec, out_dir)
                lifecycle.start_run_tracker(spec, out_dir, checkpoints.get_step(checkpoint) if checkpoint else 0)
                uploads.start_uploads(spec, out_dir)
                own_functions.load_functions(spec.task)
                task_module, title = tasks.import_task_module(spec.task.type), format_cell_title(out_dir)
                rows = next((rows for task, rows in self.rows if task == spec.task), None)
                if rows is None:
                    rows = training_session.load_rows(spec, self.base)
                    self.rows.append((spec.task, rows))
                session = TrainingSession(spec, out_dir, checkpoint, self.device, self.base, task_module, rows, title)
                training_session.write_first_rows(session)
                # A parent is measured once it is attached.
                self.before[cell] = {} if session.parent else self._evaluate_before(session, self.base.model)
        except PeftrunError as error:
            self.finish(cell, error)
            return
        self.sessions[cell] = session

    def _evaluate_before(self, session: TrainingSession, model: Any) -> dict[str, float]:
        assert isinstance(session.spec.action, TrainAction)
        if not session.spec.action.evaluate_before:
            return {}
        batch_size, samples = session.spec.trainer.per_device_eval_batch_size, session.spec.action.num_samples
        key = (id(session.rows), session.parent and session.parent.folder.resolve(), batch_size, samples)
        if key not in self.evaluated:
            self.evaluated[key] = (training_session.evaluate(session, model, "before"), session)
        metrics, evaluated = self.evaluated[key]
        session.details, session.generations = _keep_before(evaluated.details), _keep_before(evaluated.generations)
        return metrics

    def train(self, limits: Limits) -> None:
        """Trains all admitted cells to their ends; the base model is left as it was."""
        adapters = {f"cell{cell}": _describe_adapter(session) for cell, session in self.sessions.items()}
        net, refused = attach_cells.attach_cells(self.base, adapters)
        for name, reason in refused.items():
            self.finish(int(name.removeprefix("cell")), reason)
        cells = [cell for cell in self.sessions if f"cell{cell}" not in refused]
        if not cells:
            return
        try:
            sessions = [self.sessions[cell] for cell in cells]
            by_rows = {id(session.rows): session for session in sessions}
            longest = {rows: lengths.find_longest(session.rows, session.spec) for rows, session in by_rows.items()}
            runs = []
            for session in sessions:
                spec = usage.strip_tracking(session.spec)  # an estimate does not count as using a key
                spec = replace(spec, device=replace(spec.device, dtype=self.device.dtype_name))
                runs.append((spec, longest[id(session.rows)]))
            cells_per_step, line = choose_cells_per_step(runs, limits)
            console.print_info(line)
            self._train_jointly(net, cells, cells_per_step)
        finally:
            net.unload()

    def _train_jointly(self, net: Any, cells: list[int], cells_per_step: int) -> None:
        sessions = [self.sessions[cell] for cell in cells]
        joint = StackedLora(net, [f"cell{cell}" for cell in cells])
        eager = all(training_session.uses_eager_attention(session) for session in sessions)
        autocast = fit.get_autocast_dtype(self.device)
        step = JointStep(joint, sessions[0].spec.task.type, self.base.tokenizer.pad_token_id, eager, autocast)
        scheduler = CellScheduler(step, cells_per_step, self.halving)
        bodies = {}
        for index, cell in enumerate(cells):
            begin, finish = functools.partial(self.begin, cell), functools.partial(self.finish, cell)
            evaluate = functools.partial(self._evaluate_before, self.sessions[cell], net)
            cell_run = _CellRun(self.sessions[cell], index, scheduler, self.before[cell], begin, finish, evaluate)
            bodies[index] = cell_run.run
        try:
            with Progress(sessions) as progress:
                scheduler.run(bodies, progress.step)
        finally:
            joint.close()


def _keep_before(measured: dict[str, Any]) -> dict[str, Any]:
    """What was measured before training alone: the cell that measured it may have ended since."""
    return {when: value for when, value in measured.items() if when == "before"}


def _describe_adapter(session: TrainingSession) -> CellAdapter:
    spec = session.spec
    return CellAdapter(spec.lora, spec.seed, session.parent, spec.allow_base_mismatch)


@dataclass
class _CellRun:
    """One cell from its first step to its result.

    Attributes:
        index: of the cell's adapter among the joint ones.
        before: metrics before training.
        evaluate_parent: measures the adapter that the cell continues, once it is active.
        verdict: why the cell was stopped early; empty if it was not.
    """

    session: TrainingSession
    index: int
    scheduler: CellScheduler
    before: dict[str, float]
    begin: Callable[[], None]
    finish: Callable[[RunResult | Exception], None]
    evaluate_parent: Callable[[], dict[str, float]]
    verdict: str = ""

    def run(self) -> None:
        """Trains the cell; its errors are passed to `finish`, not raised, since the other cells go on."""
        self.begin()
        try:
            self.finish(self._train_cell())
        except Exception as error:
            self.finish(error)

    def _train_cell(self) -> RunResult:
        session, index, step = self.session, self.index, self.scheduler.joint_step
        joint = step.joint
        if session.parent:
            with joint.alone(index):
                self.before = self.evaluate_parent()
        set_seed(session.spec.seed)
        parameters = cell_trainer.AdapterParameters(
            joint.own[index], session.base.model.config, lambda: joint.clear(index)
        )
        adapter_state = (
            lambda: joint.tensors(index),
            lambda tensors: joint.fill(index, tensors),
            joint.net.peft_config[joint.names[index]],
        )
        factory = cell_trainer.build_trainer_factory(
            cell=index, kind=session.spec.task.type, request_step=self.scheduler.request_step, evaluate_batch=step.evaluate_batch,
            rng_stream=self.scheduler.process_states[index].draws, totals=step.totals, row=joint.rows.values[index], adapter_state=adapter_state, is_rung=self.scheduler.is_rung, wait_at_rung=self._wait_at_rung,
        )  # fmt: skip
        measure = validation_metrics.build_measure(
            session, joint.net, lambda: joint.alone(index), eager_attention=False
        )
        fitted = training_session.fit_cell(session, parameters, measure, factory)
        joint.apart(index)
        if not self.verdict:
            return self._save_finished(fitted)
        result = session_result.build_result(session, fitted, self.before, {}, joint.counts(index))
        result.status, result.facts["stopped"] = "stopped", self.verdict
        return result

    def _wait_at_rung(self, step: int, score: float, measure: str) -> bool:
        pause: RungPause = self.scheduler.request_step(RungPause(self.index, step, score, measure))
        total = fit.count_steps(self.session.spec.trainer, len(self.session.rows.train))
        self.verdict = "" if pause.go_on else f"at step {step} of {total}: {pause.verdict}"
        return pause.go_on

    def _save_finished(self, fitted: fit.FitResult) -> RunResult:
        session, joint = self.session, self.scheduler.joint_step.joint
        origin = tasks.describe_training_data(session.spec.task, session.rows)
        origin |= training_session.describe_parent(session)
        with joint.alone(self.index) as name:
            after = training_session.evaluate(session, joint.net, "after")
            target = session.out_dir / ADAPTER
            untrained = {name} if start.is_untrained(session, fitted.steps) else set()
            save.save(joint.net, session.base, target, untrained=untrained, names=[name], derived_from=origin, top=name)
        result = session_result.build_result(session, fitted, self.before, after, joint.counts(self.index))
        result.facts["joint_training"] = {
            "cells": len(joint.names),
            "seconds": round(self.scheduler.get_seconds(self.index), 2),
            "padding_share": round(self.scheduler.get_padding_share(self.index), 4),
        }
        return session_result.add_artifacts(session, result)
