"""Trackio 0.43: a run that is local, raises what its thread meets, and writes to a given folder. Light until it is called."""

import sys
from pathlib import Path
from typing import Any


def redirect_storage(folder: Path) -> None:
    """Makes Trackio write to this folder: it reads TRACKIO_DIR when it is imported, TRL imports it, and its modules copy the constants."""
    import trackio.bucket_storage
    import trackio.registry_bucket  # noqa: F401

    constants = {"TRACKIO_DIR": folder, "MEDIA_DIR": folder / "media", "ARTIFACTS_DIR": folder / "artifacts"}
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        for key in constants.keys() & vars(sys.modules[name]).keys():
            setattr(sys.modules[name], key, constants[key])


def create_local_run(project: str, **options: Any) -> Any:
    """A run of Trackio that asks the Hub for nothing; `failures` holds what its thread would only warn of."""
    from trackio.run import Run

    class LocalRun(Run):
        def _get_username(self) -> None:
            """Overrides a request to the Hub for the user's name."""

        def _warn_once(self, key: str, message: str) -> None:
            # May be called while Trackio's __init__ runs, so the list is created here.
            self.__dict__.setdefault("failures", []).append(message)

    run = LocalRun(None, project, None, **options)
    run.__dict__.setdefault("failures", [])
    return run
