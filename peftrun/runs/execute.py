"""Runs one action: record first, heavy imports second, record finished last whatever happens."""

import atexit
import gc
import logging
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from peftrun import trackers
from peftrun.artifacts import source_run
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.checks import early
from peftrun.config import usage
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec, needs_processes
from peftrun.errors import ArtifactError, PeftrunError
from peftrun.io import atomic_files
from peftrun.planning import memory_fit
from peftrun.planning.joint_memory import Limits
from peftrun.result import RunResult, TrainAlone
from peftrun.runs import torchrun, unused_keys
from peftrun.system import environment, resource_errors
from peftrun.system.versions import collect_versions
from peftrun.trackers import lifecycle

QUIET = {  # nothing of these reaches the user's terminal, and nobody asks on standard input
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "off",  # but where many rows are read at once: tasks/token_ids.py
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
IMPORTS_NOTHING = ("list", "compare", "browse")  # that takes time


def execute_run(spec: RunSpec, out_dir: Path) -> RunResult:
    """What the action named in `spec` returns; `out_dir` then holds its config and a finished record.

    Raises: ArtifactError: `out_dir` holds a run already. PeftrunError: whatever the action found at fault.
    """
    record = Record(spec, out_dir)
    if record.spec.template:
        from peftrun import console

        console.print_info(f"template {record.spec.template.name} {record.spec.template.version}")
    try:
        with (
            _terminate_as_interrupt(),
            resource_errors.convert_resource_errors(out_dir),
            memory_fit.suggest_on_shortage(spec),
        ):
            spread, spec = needs_processes(record.spec), record.spec
            early.check_base_and_rows(usage.strip_tracking(spec))
            result = (
                torchrun.run_workers(spec, out_dir) if spread else import_action(spec.action.name).run(spec, out_dir)
            )
    except BaseException as error:
        record.mark_failed(error)
        raise
    record.completed(result)
    result.summary += record.write_report()
    unused_keys.warn_unused(record.find_unused_keys())
    return result


def execute_jointly(
    specs: Sequence[RunSpec], out_dirs: Sequence[Path], allowed: Limits, halving: dict[str, int] | None = None
) -> list[int]:
    """Trains all these on one base; each folder then holds its config and a finished record, which says what was at fault if something was.

    Args: allowed: what those in one step may take. halving: `min_steps` and `factor` of successive halving.
    Returns: numbers of those that can only be run alone; their folders hold no record.
    Raises: KeyboardInterrupt: the records of those that had begun and not ended say so; the others hold none.
    """
    records = [Record(spec, out_dir) for spec, out_dir in zip(specs, out_dirs, strict=True)]
    apart: list[int] = []
    begun: set[int] = set()
    in_vain: list[str] = []

    def finish(cell: int, found: RunResult | Exception | TrainAlone) -> None:
        if isinstance(found, RunResult):
            _mark_shared_reads(records)
            records[cell].completed(found)
            records[cell].write_report()
            in_vain.extend(records[cell].find_unused_keys())
        elif isinstance(found, TrainAlone):
            records[cell].discard(f"is trained alone: {found.reason}")
            apart.append(cell)
        else:
            _report_failure(found, records[cell])

    try:
        with _terminate_as_interrupt():
            import_quietly("peftrun.training.joint.train_cells").run(
                [record.spec for record in records], list(out_dirs), allowed, halving, begin=begun.add, finish=finish
            )
    except PeftrunError as fault:  # of all of them
        for record in records:
            record.mark_failed(fault)
    except BaseException as error:
        for cell, record in enumerate(records):
            if isinstance(error, KeyboardInterrupt) and cell not in begun:
                record.discard()
            record.mark_failed(error)
        raise
    unused_keys.warn_unused(in_vain)
    return apart


def _mark_shared_reads(records: Sequence["Record"]) -> None:
    """Base and rows are read for one cell, and used by all."""
    found = {key for record in records for key in usage.list_read_keys(record.spec)}
    for record in records:
        usage.mark_used(record.spec, found)


def _report_failure(found: Exception, record: "Record") -> None:
    """One cell has failed; the others go on. A bug keeps its traceback."""
    from peftrun import console

    fault = resource_errors.to_resource_error(found, record.out_dir) or found
    record.mark_failed(fault)
    console.print_warning(
        f"cell {record.out_dir.name} failed: {str(fault).splitlines()[0] if str(fault) else type(fault).__name__}"
    )
    if not isinstance(fault, PeftrunError):
        traceback.print_exception(fault)


class Record:
    """A run's record: written at once, finished once. `spec`: the run, which notes what is read of it from now on."""

    def __init__(self, spec: RunSpec, out_dir: Path) -> None:
        ensure_new_run_dir(out_dir)
        _reset_determinism()
        atomic_files.write_text(out_dir / CONFIG, config.to_yaml(spec))
        self.out_dir, self.started, self.values, self.open = (
            out_dir,
            time.perf_counter(),
            _build_initial_record(spec),
            True,
        )
        self.values["config_sha256"] = atomic_files.hash_file(out_dir / CONFIG)
        atomic_files.write_json(out_dir / RECORD, self.values)
        self.told = False  # by a page, and to a tracker
        self.spec = usage.track_reads(spec)
        usage.mark_used(self.spec, ("slots", "template"))  # they were when the run was composed

    def completed(self, result: RunResult) -> None:
        """What came out."""
        self._finish(status=result.status, **_collect_outcome(result), unread=usage.list_unused_keys(self.spec))

    def find_unused_keys(self) -> list[str]:
        """What was set and has not been read until now."""
        return unused_keys.find_unused_keys(
            usage.strip_tracking(self.spec), self.out_dir, usage.list_unused_keys(self.spec)
        )

    def mark_failed(self, error: BaseException) -> None:
        """What was at fault, or that it was interrupted; nothing where the record is finished already."""
        ending: dict[str, Any] = {"status": "failed", "error": str(error) or type(error).__name__}
        if isinstance(error, KeyboardInterrupt):
            ending = {"status": "interrupted"}
        with suppress(ArtifactError):  # on a full disk: what went wrong first is what is told
            self._finish(**ending, **getattr(error, "facts", {}))
        self.write_report()

    def write_report(self) -> list[tuple[str, str]]:
        """Leaves the page of a training, whatever became of it, and tells its tracker: where it lies, as a row for the closing table."""
        if self.open or self.told:
            return []
        self.told = True
        try:
            return self._write_page()
        finally:
            lifecycle.end_run_tracker(self.spec, self.out_dir, self.values)

    def _write_page(self) -> list[tuple[str, str]]:
        if self.values["action"] != "train":
            return []
        from peftrun import console
        from peftrun.results.report import page

        found = page.try_write_report(self.out_dir)
        return [("report", console.shorten_path(found))] if found else []

    def discard(self, why: str = "") -> None:
        """The run has not begun, as if it had never been asked for; nothing where the record is finished already."""
        from peftrun import console

        if not self.open:
            return
        if why:
            console.print_info(f"cell {self.out_dir.name} {why}")
        self.open, self.told = False, True
        trackers.pause_tracking(self.out_dir)
        (self.out_dir / RECORD).unlink()

    def _finish(self, **more: Any) -> None:
        if not self.open:
            return
        self.open = False
        self.values |= {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self.started, 2),
        }
        self.values |= more
        atomic_files.write_json(self.out_dir / RECORD, self.values)


def ensure_new_run_dir(out_dir: Path) -> None:
    """Raises: ArtifactError: the folder holds a run."""
    if (out_dir / RECORD).exists():
        raise ArtifactError(f"{out_dir}: holds a run already; name a folder that does not exist")


def import_action(name: str) -> Any:
    """The module of an action, its heavy imports done and quiet."""
    module = f"peftrun.actions.{name}"
    return import_module(module) if name in IMPORTS_NOTHING else import_quietly(module)


def import_quietly(module: str) -> Any:
    """A module that imports torch, quietly."""
    if module in sys.modules:
        return sys.modules[module]
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    # It tells at each start what it could do if another package were there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peftrun import console

    with console.show_import_spinner(), _disable_gc():
        return import_module(module)


@contextmanager
def _disable_gc() -> Iterator[None]:
    """The collector looks at loaded modules neither while they load nor when the process ends: they stay, and each look takes a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)


def _build_initial_record(spec: RunSpec) -> dict[str, Any]:
    return {
        "status": "running",
        "action": spec.action.name,
        "command": sys.argv,
        "seed": spec.seed,
        **({"template": {"name": spec.template.name, "version": spec.template.version}} if spec.template else {}),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": collect_versions(),
        "git_commit": environment.get_git_commit(Path()),  # for people who keep their configs in git
        "platform": platform.platform(),
        "pid": os.getpid(),
        "host": platform.node(),  # on which that process is looked for
        "environment": environment.describe_environment(),
        "given": source_run.hash_input_adapters(spec.adapter),
        "files": source_run.hash_input_files(usage.strip_tracking(spec)),
    }


def _collect_outcome(result: RunResult) -> dict[str, Any]:
    return {
        **collect_numerics(),
        **result.facts,
        "metrics": result.metrics,
        "objective": result.objective,
        "artifacts": atomic_files.hash_files(result.out_dir, result.artifacts, result.hashes),
    }


def collect_numerics() -> dict[str, Any]:
    """How this process has computed the run (threads, what was not deterministic), for its record; empty where no device was asked for."""
    found = sys.modules.get("peftrun.system.determinism")
    state = found.describe_determinism() if found else None
    return {"computing": state} if state else {}


def _reset_determinism() -> None:
    found = sys.modules.get("peftrun.system.determinism")
    if found:
        found.reset_determinism()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM ends a run as Ctrl-C does: with its record finished."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: the caller owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
