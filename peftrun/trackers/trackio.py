"""Trackio: one local SQLite file per project. Light until a tracker starts."""

from pathlib import Path
from typing import Any

from peftrun.compat.trackio import create_local_run, redirect_storage
from peftrun.config.schema.trackers import TrackioTracker
from peftrun.errors import ConfigError
from peftrun.trackers.base import Outcome, Run, summarize_record

_OPEN_DIRS: list[Path] = []  # folders of the open sessions, one entry per session


class _TrackioSession:
    """`last_step`: up to which an earlier attempt has logged; -1 for a new run."""

    def __init__(self, run: Any, spec: TrackioTracker, folder: Path, last_step: int) -> None:
        self.run, self.id, self.spec, self.folder, self.last_step = run, run.id, spec, folder, last_step

    def log(self, values: dict[str, float], step: int) -> None:
        if step > self.last_step:  # Trackio would keep both points of a step
            self.run.log(values, step=step)
        self._raise_failures()

    def pause(self) -> None:
        self.run.finish()
        self._release_dir()
        self._raise_failures()

    def end(self, outcome: Outcome) -> None:
        from trackio import Artifact
        from trackio.sqlite_storage import SQLiteStorage

        artifact = Artifact(f"run-{self.run.name}", type="run")
        for file in outcome.files:
            artifact.add_file(file)
        if outcome.adapter and self.spec.log_adapter:
            artifact.add_dir(outcome.adapter, name=outcome.adapter.name)
        self.run.log_artifact(artifact)
        self.pause()
        # Trackio shows the config that is logged last, so the outcome is logged with it after the run's thread has ended.
        summary = {
            "peftrun": outcome.record["versions"].get("peftrun"),
            **summarize_record(outcome.record),
            "status": outcome.status,
        }
        steps = [0, max(self.last_step, outcome.last_step)]
        SQLiteStorage.bulk_log(
            self.run.project,
            self.run.name,
            [outcome.at(first=True), outcome.at(first=False)],
            steps,
            config=self.run.config | summary,
            run_id=self.id,
        )

    def _release_dir(self) -> None:
        if self.folder in _OPEN_DIRS:
            _OPEN_DIRS.remove(self.folder)

    def _raise_failures(self) -> None:
        # Trackio writes in a thread of its own, which warns instead of raising.
        if self.run.failures:
            self._release_dir()
            raise OSError(self.run.failures[0])


def opened(spec: TrackioTracker, run: Run) -> _TrackioSession:
    """A session with its own run of Trackio: `trackio.init` would end the one before. Raises: ConfigError: see `_redirect_storage`."""
    folder = Path(spec.folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _redirect_storage(folder, spec.folder)
    from trackio.sqlite_storage import SQLiteStorage

    local = create_local_run(spec.project, name=run.name, run_id=run.id, group=run.group, config=dict(run.config))
    if run.differs:
        local.config["differs"] = " ".join(run.differs)
    last_step = SQLiteStorage.get_max_step_for_run(spec.project, run.name, run_id=run.id) if run.id else None
    return _TrackioSession(local, spec, folder, -1 if last_step is None else last_step)


def _redirect_storage(folder: Path, typed: str) -> None:
    """Makes Trackio write to this folder. Args: typed: the folder as the user typed it.

    Raises: ConfigError: another open session of this process writes to another folder.
    """
    if _OPEN_DIRS and _OPEN_DIRS[-1] != folder:
        raise ConfigError(
            f"tracker.folder={typed}: another run of this process logs to {_OPEN_DIRS[-1]}; give both the same folder"
        )
    redirect_storage(folder)
    _OPEN_DIRS.append(folder)
