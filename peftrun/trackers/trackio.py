"""Trackio: one SQLite file a project, on this disk. Light until a tracker begins."""

import sys
from pathlib import Path
from typing import Any

from peftrun.config.schema.trackers import TrackioTracker
from peftrun.errors import ConfigError
from peftrun.trackers.base import Outcome, Run, summarize_record

_OPEN_DIRS: list[Path] = []  # folders of the sessions that have not ended


class _TrackioSession:
    """`last`: the step up to which an earlier attempt has told everything."""

    def __init__(self, run: Any, spec: TrackioTracker, place: Path, last: int) -> None:
        self.run, self.id, self.spec, self.place, self.last = run, run.id, spec, place, last

    def log(self, values: dict[str, float], step: int) -> None:
        if step > self.last:
            self.run.log(values, step=step)
        self._raise_faults()

    def pause(self) -> None:
        self.run.finish()
        self._leave()
        self._raise_faults()

    def end(self, outcome: Outcome) -> None:
        """What is told last carries the config, and with it how the run ended; so it is told once all else is written."""
        from trackio.sqlite_storage import SQLiteStorage

        self._log_artifacts(outcome)
        self.pause()
        told = {
            "peftrun": outcome.record["versions"].get("peftrun"),
            **summarize_record(outcome.record),
            "status": outcome.status,
        }
        steps = [0, max(self.last, outcome.last_step)]
        SQLiteStorage.bulk_log(
            self.run.project,
            self.run.name,
            [outcome.at(first=True), outcome.at(first=False)],
            steps,
            config=self.run.config | told,
            run_id=self.id,
        )

    def _leave(self) -> None:
        if self.place in _OPEN_DIRS:
            _OPEN_DIRS.remove(self.place)

    def _log_artifacts(self, outcome: Outcome) -> None:
        from trackio import Artifact

        kept = Artifact(f"run-{self.run.name}", type="run")
        for file in outcome.files:
            kept.add_file(file)
        if outcome.adapter and self.spec.log_adapter:
            kept.add_dir(outcome.adapter, name=outcome.adapter.name)
        self.run.log_artifact(kept)

    def _raise_faults(self) -> None:
        """Trackio writes in a thread of its own, and warns where it cannot."""
        if self.run.faults:
            self._leave()
            raise OSError(self.run.faults[0])


def opened(spec: TrackioTracker, run: Run) -> _TrackioSession:
    """A run of Trackio's with its own handle: `trackio.init` would end the one before. Raises: ConfigError: see `_at`."""
    place = Path(spec.folder).expanduser().absolute()
    place.mkdir(parents=True, exist_ok=True)
    _redirect_storage(place, spec.folder)
    from trackio.run import Run as Library
    from trackio.sqlite_storage import SQLiteStorage

    class Local(Library):
        def _get_username(self) -> None:
            """Trackio would ask the Hub who this is."""

        def _warn_once(self, key: str, message: str) -> None:
            self.__dict__.setdefault("faults", []).append(message)

    made = Local(None, spec.project, None, name=run.name, run_id=run.id, group=run.group, config=dict(run.config))
    made.__dict__.setdefault("faults", [])
    if run.differs:
        made.config["differs"] = " ".join(run.differs)
    last = SQLiteStorage.get_max_step_for_run(spec.project, run.name, run_id=run.id) if run.id else None
    return _TrackioSession(made, spec, place, -1 if last is None else last)


def _redirect_storage(place: Path, named: str) -> None:
    """Has Trackio write to this folder. It has read its own setting when it was imported, which TRL does.

    Raises: ConfigError: another run of this process is told to another folder now.
    """
    if _OPEN_DIRS and _OPEN_DIRS[-1] != place:
        raise ConfigError(
            f"tracker.folder={named}: another run of this process is told to {_OPEN_DIRS[-1]}; give both one folder"
        )
    import trackio.bucket_storage
    import trackio.registry_bucket  # noqa: F401

    own = {"TRACKIO_DIR": place, "MEDIA_DIR": place / "media", "ARTIFACTS_DIR": place / "artifacts"}
    for name in [one for one in sys.modules if one.partition(".")[0] == "trackio"]:
        for key in own.keys() & vars(sys.modules[name]).keys():
            setattr(sys.modules[name], key, own[key])
    _OPEN_DIRS.append(place)
