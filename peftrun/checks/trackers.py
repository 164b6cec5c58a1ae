"""What must hold of a tracker, beyond types; light, before anything is loaded."""

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
STORE_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")
WANDB_HOST = "https://api.wandb.ai"


def check_package(tracker: Any, action: Any) -> Lines:
    """The library is there. Nothing but a training uses it."""
    if action.name == "train" and tracker.name != "none" and find_package_dir(tracker.name) is None:
        yield explain_not_installed("tracker.name", tracker.name)


def check_tracking_uri(tracker: Any, action: Any) -> Lines:
    """The tracking server or database can be one, and no password stands in it: it would be kept in the run folder."""
    if action.name != "train" or not isinstance(tracker, tracker_specs.MlflowTracker) or tracker.uri is None:
        return
    scheme, _, _ = tracker.uri.partition(":")
    if scheme.partition("+")[0] not in STORE_SCHEMES or ":" not in tracker.uri:
        yield f"tracker.uri={tracker.uri}: is no address of a tracking server or database; type tracker.uri=http://HOST:5000, or null"
    elif _has_password(tracker.uri):
        yield (
            "tracker.uri: holds a password, which would be kept in config.yaml; leave it out, and set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, or your database's own password file"
        )


def _has_password(uri: str) -> bool:
    try:
        return urlsplit(uri).password is not None
    except ValueError:
        return False


def check_api_key(tracker: Any, action: Any) -> Lines:
    """Weights & Biases would ask for its key on standard input."""
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
    """A folder is named, and not a file."""
    named = getattr(tracker, "folder", None)
    if action.name == "train" and named is not None and Path(named).expanduser().is_file():
        yield f"tracker.folder={named}: is a file; name a folder, which may not be there yet"


def suggest_other_tracker(key: str, value: str, chosen: str) -> str | None:
    """One line for a key that the chosen tracker lacks and another has; None for any other key."""
    own = key.removeprefix("tracker.")
    homes = _map_keys_to_trackers()
    near = get_close_matches(own, homes, n=1, cutoff=0.75) if own != key else []
    if not near or chosen in homes[near[0]]:
        return None
    better = f"tracker={homes[near[0]][0]} tracker.{near[0]}={value}"
    if chosen == "none":
        return f"{key}={value}: no tracker is chosen; choose one first: type {better}"
    return f"{key}={value}: tracker={chosen} has no {near[0]} ({', '.join(homes[near[0]])} have it); type {better}"


def _map_keys_to_trackers() -> dict[str, list[str]]:
    """Key → the trackers that have it."""
    found: dict[str, list[str]] = {}
    for kind in (
        tracker_specs.MlflowTracker,
        tracker_specs.TrackioTracker,
        tracker_specs.WandbTracker,
        tracker_specs.TensorBoardTracker,
    ):
        (name,) = get_args(get_type_hints(kind)["name"])
        for key in get_type_hints(kind).keys() - {"name"}:
            found.setdefault(key, []).append(name)
    return found


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("tracker", "action"), check_package),
    (("tracker", "action"), check_tracking_uri),
    (("tracker", "action"), check_api_key),
    (("tracker", "action"), check_folder),
]
