"""Looking at an adapter folder before anything heavy loads: is it there, whole, and safe to read?"""

import re
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, PEFTRUN_METADATA, RECORD
from peftrun.errors import AdapterError, ArtifactError
from peftrun.io import safetensors_header
from peftrun.io.atomic_files import read_json

ADAPTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
SERVED_NAME = re.compile(rf"{ADAPTER_NAME.pattern}(\.[A-Za-z0-9_-]+)*")  # a server gives PEFT another
NAME_RULE = "must be letters, digits, '_' and '-'"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def check_adapter_name(name: str) -> None:
    """Raises: AdapterError: `name` could not be a folder of its own."""
    if not ADAPTER_NAME.fullmatch(name):
        raise AdapterError(f"adapter name {name!r}: {NAME_RULE}; type adapter={{{_sanitize_name(name)}: PATH}}")


def _sanitize_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "my_name"


def format_adapter_option(path: object, name: str) -> str:
    """How the adapter was asked for on the command line."""
    return f"adapter={path}" if name == "default" else f"adapter.{name}={path}"


def resolve_adapter_dir(path: str, name: str = "default") -> Path:
    """The adapter folder that `path` means: itself, or the one inside the run folder `path`.

    Raises: AdapterError: there is none, the run that should have made it failed, or a file in it is missing,
        torn, a pickle, or not JSON.
    """
    given, key = Path(path).expanduser(), format_adapter_option(path, name)
    if not path.strip():
        raise AdapterError(f"{key}: names no folder; name a run folder or one that holds {ADAPTER_CONFIG}")
    if not given.is_dir():
        raise AdapterError(f"{key}: is not a folder; name a run folder or one that holds {ADAPTER_CONFIG}")
    folder = _find_in_run(given, key) if (given / RECORD).is_file() else given
    if (folder / name / ADAPTER_CONFIG).is_file():
        folder = folder / name
    _check_files(folder, key)
    return folder


def read_peftrun_metadata(folder: Path) -> dict[str, Any] | None:
    """What peftrun noted beside the adapter, or None when the adapter was made elsewhere.

    Raises: ArtifactError: the file is not JSON, or does not say which base the adapter was made for.
    """
    if not (folder / PEFTRUN_METADATA).is_file():
        return None
    found = read_json(folder / PEFTRUN_METADATA)
    try:
        str(found["base"]["name"]), str(found["base"]["fingerprint"]["weights"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder / PEFTRUN_METADATA}: does not say which base the adapter was made for; restore it or make the adapter again"
        ) from error
    return found


def virtual_tokens(adapters: dict[str, str]) -> int:
    """Tokens that an adapter puts before each text, of those that put most; 0 of most methods. Raises: AdapterError: see `locate`."""
    configs = [read_json(resolve_adapter_dir(path, name) / ADAPTER_CONFIG) for name, path in adapters.items()]
    return max((int(config.get("num_virtual_tokens") or 0) for config in configs), default=0)


def _find_in_run(run: Path, key: str) -> Path:
    record = read_json(run / RECORD)
    if (run / ADAPTER).is_dir():
        return run / ADAPTER
    if record.get("status") == "completed":
        raise AdapterError(
            f"{key}: this run is 'completed', and its folder holds no {ADAPTER}; restore it, or name another run"
        )
    reason = f" ({record['error']})" if record.get("error") else ""
    raise AdapterError(
        f"{key}: this run is '{record.get('status')}' and saved no adapter{reason}; "
        f"finish it with action.resume={run}, or name another run"
    )


def _check_files(folder: Path, key: str) -> None:
    if not any(folder.iterdir()):
        raise AdapterError(f"{key}: the folder is empty; name a run folder or one that holds {ADAPTER_CONFIG}")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise AdapterError(f"{key}: holds no {ADAPTER_CONFIG}; name a run folder or an adapter folder")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise AdapterError(_explain_missing_weights(folder, key))
    try:
        read_json(folder / ADAPTER_CONFIG)
        read_peftrun_metadata(folder)
        found = safetensors_header.read_header(folder / ADAPTER_WEIGHTS)
    except ArtifactError as error:
        raise AdapterError(f"{key}: {error}") from error
    if not found:
        raise AdapterError(f"{key}: {ADAPTER_WEIGHTS} holds no tensor; make the adapter again")


def _explain_missing_weights(folder: Path, key: str) -> str:
    pickles = [file.name for pattern in PICKLES for file in folder.glob(pattern)]
    if pickles:
        return (
            f"{key}: {pickles[0]} is a pickle, which can run code when read, and is refused; "
            f"save the adapter again as {ADAPTER_WEIGHTS}"
        )
    return f"{key}: {ADAPTER_WEIGHTS} is missing beside {ADAPTER_CONFIG}; restore it or make the adapter again"


def find_adapter_run(path: str) -> Path | None:
    """The folder of the run that made an adapter; None where there is none, or nothing is known of it."""
    folder = Path(path).expanduser()
    places = (folder, *list(folder.absolute().parents)[:2])  # the run, its adapter, one of several in that
    return next((one for one in places if (one / RECORD).is_file() and (one / CONFIG).is_file()), None)
