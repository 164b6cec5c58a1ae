"""Rules of trackers, beyond types. Light: checked before anything is loaded."""

import netrc
import os
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

from peftrun.config.schema import trackers as tracker_specs
from peftrun.system.packages import explain_not_installed, find_package_dir

Lines = Iterator[str]
# Schemes of tracking URIs that MLflow accepts.
STORE_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")
WANDB_HOST = "https://api.wandb.ai"


def check_package(tracker: Any, action: Any) -> Lines:
    """The tracker's package is installed. Only action=train uses it."""
    if action.name == "train" and tracker.name != "none" and find_package_dir(tracker.name) is None:
        yield explain_not_installed("tracker.name", tracker.name)


def check_tracking_uri(tracker: Any, action: Any) -> Lines:
    """The address is one of a tracking server or database, and has no password, which would be saved in config.yaml."""
    if action.name != "train" or not isinstance(tracker, tracker_specs.MlflowTracker) or tracker.uri is None:
        return
    # SQLAlchemy's URIs may name a driver: postgresql+psycopg2://…
    scheme, _, _ = tracker.uri.partition(":")
    if scheme.partition("+")[0] not in STORE_SCHEMES or ":" not in tracker.uri:
        yield f"tracker.uri={tracker.uri}: is not the address of a tracking server or database; type tracker.uri=http://HOST:5000, or null"
    elif _has_password(tracker.uri):
        yield (
            "tracker.uri: has a password, which would be saved in config.yaml; leave it out, and set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, or your database's own password file"
        )


def _has_password(uri: str) -> bool:
    try:
        return urlsplit(uri).password is not None
    except ValueError:
        return False


def check_api_key(tracker: Any, action: Any) -> Lines:
    """Weights & Biases has a key; without one it would ask for it on standard input."""
    if action.name != "train" or not isinstance(tracker, tracker_specs.WandbTracker) or tracker.mode == "offline":
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_HOST)).hostname or ""
    if not os.environ.get("WANDB_API_KEY") and not _is_in_netrc(host):
        yield (
            f"tracker.mode=online: there is no key for {host}; type `wandb login` or set WANDB_API_KEY, or type tracker.mode=offline"
        )


def _is_in_netrc(host: str) -> bool:
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def check_folder(tracker: Any, action: Any) -> Lines:
    """The folder is not a file."""
    folder = getattr(tracker, "folder", None)
    if action.name == "train" and folder is not None and Path(folder).expanduser().is_file():
        yield f"tracker.folder={folder}: is a file; name a folder, which may be a new one"


def suggest_other_tracker(key: str, value: str, chosen: str) -> str | None:
    """A message for a key that another tracker has, but not the chosen one; None for any other key."""
    name = key.removeprefix("tracker.")
    trackers: dict[str, list[str]] = {}  # key → the trackers that have it
    for tracker_class in (
        tracker_specs.MlflowTracker,
        tracker_specs.TrackioTracker,
        tracker_specs.WandbTracker,
        tracker_specs.TensorBoardTracker,
    ):
        fields = get_type_hints(tracker_class)
        (tracker,) = get_args(fields["name"])
        for field in fields.keys() - {"name"}:
            trackers.setdefault(field, []).append(tracker)
    matches = get_close_matches(name, trackers, n=1, cutoff=0.75) if name != key else []
    if not matches or chosen in trackers[matches[0]]:
        return None
    match = matches[0]
    advice = f"tracker={trackers[match][0]} tracker.{match}={value}"
    if chosen == "none":
        return f"{key}={value}: no tracker is chosen; choose one first: type {advice}"
    return f"{key}={value}: tracker={chosen} has no {match} ({', '.join(trackers[match])} have it); type {advice}"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("tracker", "action"), check_package),
    (("tracker", "action"), check_tracking_uri),
    (("tracker", "action"), check_api_key),
    (("tracker", "action"), check_folder),
]
