"""Runs one action: record first, heavy imports second, record finished last whatever happens."""

import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from peftrun import artifacts, config, launch
from peftrun.errors import ArtifactError
from peftrun.result import RunResult
from peftrun.schema import RunSpec
from peftrun.versions import versions

QUIET = {  # nothing of these reaches the user's terminal, and nobody asks on standard input
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """What the action named in `spec` returns; `out_dir` then holds its config and a finished record.

    Raises: ArtifactError: `out_dir` holds a run already. PeftrunError: whatever the action found at fault.
    """
    if (out_dir / artifacts.RECORD).exists():
        raise ArtifactError(f"{out_dir}: holds a run already; name a folder that does not exist")
    artifacts.write_text(out_dir / artifacts.CONFIG, config.to_yaml(spec))
    started = time.perf_counter()
    record = _opening(spec)
    artifacts.write_json(out_dir / artifacts.RECORD, record)
    try:
        with _terminate_as_interrupt(), _disk_full_as_fault(out_dir):
            spread = launch.wanted(spec)
            result = launch.run(spec, out_dir) if spread else action(spec.action.name).run(spec, out_dir)
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        with suppress(ArtifactError):  # on a full disk: what went wrong first is what is told
            _finish(record, out_dir, started, status="failed", error=reason, **getattr(error, "facts", {}))
        raise
    _finish(record, out_dir, started, status="completed", **_outcome(result))
    return result


def action(name: str) -> Any:
    """The module of an action, its heavy imports done and quiet."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    # It tells at each start what it could do if another package were there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peftrun import console

    with console.importing():
        return import_module(f"peftrun.actions.{name}")


def _opening(spec: RunSpec) -> dict[str, Any]:
    return {
        "status": "running",
        "action": spec.action.name,
        "command": sys.argv,
        "seed": spec.seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "pid": os.getpid(),
    }


def _outcome(result: RunResult) -> dict[str, Any]:
    return {
        **result.facts,
        "metrics": result.metrics,
        "artifacts": artifacts.digests(result.out_dir, *result.artifacts),
    }


def _finish(record: dict[str, Any], out_dir: Path, started: float, **more: Any) -> None:
    record |= {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 2),
    }
    artifacts.write_json(out_dir / artifacts.RECORD, record | more)


def _git_commit() -> str | None:
    """The commit of the folder a run is started in, for people who keep their configs in git."""
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None


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


@contextmanager
def _disk_full_as_fault(out_dir: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        if not artifacts.disk_refused(error) or (isinstance(error, OSError) and code not in artifacts.DISK_FULL):
            raise
        where, reason = getattr(error, "filename", None) or out_dir, getattr(error, "strerror", None) or str(error)
        raise ArtifactError(
            f"{where}: the disk is full ({' '.join(reason.split())[:200]}); free space and run again"
        ) from error
