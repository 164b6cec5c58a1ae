"""Execute one action: write the record first, import torch second, and finish the record whatever happens."""

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
from peftrun.artifacts import function_files, source_run
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.checks import early
from peftrun.config import usage
from peftrun.config import values as config
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.run import RunSpec, needs_processes
from peftrun.errors import ArtifactError, PeftrunError
from peftrun.io import atomic_files
from peftrun.planning import memory_fit
from peftrun.planning.joint_memory import Limits
from peftrun.result import RunResult, TrainAlone
from peftrun.runs import result_upload, torchrun, unused_keys
from peftrun.system import environment, resource_errors
from peftrun.system.versions import collect_versions
from peftrun.trackers import lifecycle

QUIET = {  # environment that keeps progress bars and warnings of the libraries off the terminal
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "off",  # tasks/token_ids.py turns it on for many rows
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
# Imported without `import_quietly`; not all that import no torch.
LIGHT_ACTIONS = ("list", "compare", "browse", "import")


def execute_run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The result of the action named in `spec`; `out_dir` then holds its config and a finished record.

    Raises: ArtifactError: `out_dir` holds a run already. PeftrunError: any error of the action.
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
            spec = record.spec
            is_distributed = needs_processes(spec)
            plain = usage.strip_tracking(spec)
            early.check_base_and_rows(plain)  # before torch is imported, which takes seconds
            memory_fit.check_before_import(plain)
            if is_distributed:
                result = torchrun.run_workers(spec, out_dir)
            else:
                result = import_action(spec.action.name).run(spec, out_dir)
    except BaseException as error:
        record.mark_failed(error)
        record.finish_uploads()
        raise
    record.mark_completed(result)
    result.summary += record.write_report() + record.upload_result()
    unused_keys.warn_unused(record.find_unused_keys())
    return result


def execute_jointly(
    specs: Sequence[RunSpec], out_dirs: Sequence[Path], allowed: Limits, halving: dict[str, int] | None = None
) -> list[int]:
    """Train all cells on one base model; each folder then holds its config and a finished record, with the error if there was one.

    Args:
        allowed: memory limits of one step.
        halving: `min_steps` and `factor` of successive halving.

    Returns: indices of cells that can only be trained alone; their folders hold no record.
    Raises: KeyboardInterrupt: records of started, unfinished cells say so; the others hold none.
    """
    records = [Record(spec, out_dir) for spec, out_dir in zip(specs, out_dirs, strict=True)]
    alone: list[int] = []
    started: set[int] = set()
    unused: list[str] = []

    def finish(cell: int, outcome: RunResult | Exception | TrainAlone) -> None:
        if isinstance(outcome, RunResult):
            # Base model and rows are read through the spec of one cell, and used by all.
            read_keys = {key for record in records for key in usage.list_read_keys(record.spec)}
            for record in records:
                usage.mark_used(record.spec, read_keys)
            records[cell].mark_completed(outcome)
            records[cell].write_report()
            _upload_cell(records[cell])
            unused.extend(records[cell].find_unused_keys())
        elif isinstance(outcome, TrainAlone):
            records[cell].discard(f"is trained alone: {outcome.reason}")
            alone.append(cell)
        else:
            _report_failure(outcome, records[cell])

    try:
        with _terminate_as_interrupt():
            import_quietly("peftrun.training.joint.train_cells").run(
                [record.spec for record in records], list(out_dirs), allowed, halving, begin=started.add, finish=finish
            )
    except PeftrunError as error:  # concerns all cells
        for record in records:
            record.mark_failed(error)
    except BaseException as error:
        for cell, record in enumerate(records):
            if isinstance(error, KeyboardInterrupt) and cell not in started:
                record.discard()
            record.mark_failed(error)
        raise
    unused_keys.warn_unused(unused)
    return alone


def _upload_cell(record: "Record") -> None:
    """Send the result of a cell; a failure costs a warning, since the other cells go on."""
    from peftrun import console

    try:
        record.upload_result()
    except ArtifactError as error:
        console.print_warning(f"cell {record.out_dir.name}: {error}")


def _report_failure(error: Exception, record: "Record") -> None:
    """Record that a cell has failed while the others go on; an unexpected exception keeps its traceback."""
    from peftrun import console

    reported = resource_errors.to_resource_error(error, record.out_dir) or error
    record.mark_failed(reported)
    record.finish_uploads()
    console.print_warning(
        f"cell {record.out_dir.name} failed: {str(reported).splitlines()[0] if str(reported) else type(reported).__name__}"
    )
    if not isinstance(reported, PeftrunError):
        traceback.print_exception(reported)


class Record:
    """record.json of a run: written at the start, finished once. `spec`: the run, which tracks the keys that are read from now on."""

    def __init__(self, spec: RunSpec, out_dir: Path) -> None:
        ensure_new_run_dir(out_dir)
        if determinism := _get_determinism_module():  # an earlier run of this process may have set it
            determinism.reset_determinism()
        function_files.forget_modules()
        atomic_files.write_text(out_dir / CONFIG, config.to_yaml(spec))
        self.out_dir, self.started, self.open = out_dir, time.perf_counter(), True
        template = {"name": spec.template.name, "version": spec.template.version} if spec.template else None
        self.values: dict[str, Any] = {
            "status": "running",
            "action": spec.action.name,
            "command": sys.argv,
            "seed": spec.seed,
            **({"template": template} if template else {}),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": collect_versions(),
            "git_commit": environment.get_git_commit(Path()),  # of the working directory: users keep configs in git
            "platform": platform.platform(),
            "pid": os.getpid(),
            "host": platform.node(),  # where the catalog looks for the process
            "environment": environment.describe_environment(),
            "input_adapters": source_run.hash_input_adapters(spec.adapter),
            **source_run.describe_hub_adapters(spec.adapter),
            "files": source_run.hash_input_files(usage.strip_tracking(spec)),
            "config_sha256": atomic_files.hash_file(out_dir / CONFIG),
        }
        atomic_files.write_json(out_dir / RECORD, self.values)
        source_run.copy_function_files(usage.strip_tracking(spec), out_dir)
        self.is_reported = False  # the report is written and the tracker has ended
        self.spec = usage.track_reads(spec)
        usage.mark_used(self.spec, ("params", "template"))  # they were read during composition

    def mark_completed(self, result: RunResult) -> None:
        """Finish the record with the action's result."""
        outcome = {
            **collect_numerics(),
            **result.facts,
            "metrics": result.metrics,
            "objective": result.objective,
            "artifacts": atomic_files.hash_files(result.out_dir, result.artifacts, result.hashes),
        }
        self._finish(status=result.status, **outcome, unused_keys=usage.list_unused_keys(self.spec))

    def find_unused_keys(self) -> list[str]:
        """`key=value` of keys that were set and have not been read so far."""
        return unused_keys.find_unused_keys(
            usage.strip_tracking(self.spec), self.out_dir, usage.list_unused_keys(self.spec)
        )

    def mark_failed(self, error: BaseException) -> None:
        """Finish the record with the error or an interruption; no effect on a finished record."""
        ending: dict[str, Any] = {"status": "failed", "error": str(error) or type(error).__name__}
        if isinstance(error, KeyboardInterrupt):
            ending = {"status": "interrupted"}
        with suppress(ArtifactError):  # on a full disk; the first error is the one to report
            self._finish(**ending, **getattr(error, "facts", {}))
        self.write_report()

    def write_report(self) -> list[tuple[str, str]]:
        """Write the report of a training, whatever its outcome, and end its tracker; the report's path as a summary row."""
        if self.open or self.is_reported:
            return []
        self.is_reported = True
        try:
            if self.values["action"] != "train":
                return []
            from peftrun import console
            from peftrun.results.report import page

            path = page.try_write_report(self.out_dir)
            return [("report", console.shorten_path(path))] if path else []
        finally:
            lifecycle.end_run_tracker(self.spec, self.out_dir, self.values)

    def finish_uploads(self) -> None:
        """Wait until the checkpoints of a training that ended early are sent."""
        if self._is_uploaded():
            result_upload.finish_uploads(self.out_dir)

    def upload_result(self) -> list[tuple[str, str]]:
        """Send what a completed training has made to where its config says; rows of the summary. Raises: ArtifactError: it was not sent."""
        return result_upload.upload_result(self.spec, self.out_dir) if self._is_uploaded() else []

    def _is_uploaded(self) -> bool:
        spec = usage.strip_tracking(self.spec)
        return isinstance(spec.action, TrainAction) and bool(spec.trainer.push_to_hub or spec.action.upload_to)

    def discard(self, reason: str = "") -> None:
        """Remove the record of a run that has not started; no effect on a finished record. `reason`: printed."""
        from peftrun import console

        if not self.open:
            return
        if reason:
            console.print_info(f"cell {self.out_dir.name} {reason}")
        self.open, self.is_reported = False, True
        trackers.pause_tracking(self.out_dir)
        (self.out_dir / RECORD).unlink()

    def _finish(self, **outcome: Any) -> None:
        if not self.open:
            return
        self.open = False
        self.values |= {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self.started, 2),
            **outcome,
        }
        atomic_files.write_json(self.out_dir / RECORD, self.values)


def ensure_new_run_dir(out_dir: Path) -> None:
    """Raises: ArtifactError: the folder holds a run."""
    if (out_dir / RECORD).exists():
        raise ArtifactError(f"{out_dir}: holds a run already; name a folder that does not exist")


def import_action(name: str) -> Any:
    """The module of an action, with its heavy imports done quietly."""
    module = f"peftrun.actions.{name}"
    return import_module(module) if name in LIGHT_ACTIONS else import_quietly(module)


def import_quietly(module: str) -> Any:
    """A module that imports torch, without the libraries' output."""
    if module in sys.modules:
        return sys.modules[module]
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    # Logs at each start which features it would have with other packages.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peftrun import console

    with console.show_import_spinner(), _disable_gc():
        return import_module(module)


@contextmanager
def _disable_gc() -> Iterator[None]:
    """No garbage collection of modules during import and at exit: they live as long as the process, and a pass over them takes a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)


def collect_numerics() -> dict[str, Any]:
    """Threads, kernels and nondeterministic operations of this process, for its record; empty if no device was requested."""
    determinism = _get_determinism_module()
    state = determinism.describe_determinism() if determinism else None
    return {"numerics": state} if state else {}


def _get_determinism_module() -> Any:
    """The module if an action has imported it; importing it here would import torch."""
    return sys.modules.get("peftrun.system.determinism")


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM, which schedulers send, into KeyboardInterrupt, so that the record is finished as after Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: the caller owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
