"""Finds and checks an adapter before anything heavy loads: its folder exists, is complete, and is safe to read. Light."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_rules, hub_adapters, records, remote_files
from peftrun.artifacts.hub_adapters import HubAdapter
from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, PEFTRUN_METADATA, RECORD
from peftrun.errors import AdapterError, ArtifactError
from peftrun.io import safetensors_header
from peftrun.io.atomic_files import read_json

ADAPTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
SERVED_NAME = re.compile(
    rf"{ADAPTER_NAME.pattern}(\.[A-Za-z0-9_-]+)*"
)  # may have dots: a server gives PEFT another name
TENSOR_NAMES = ("weight", "bias")  # PEFT selects an adapter's tensors by a part of their name
NAME_RULE = "must be letters, digits, '_' and '-'"
STACK = "stack"  # in an adapter that is the sum of two: the folder of its parts, and their entry in peftrun.json
STACKED_ON = "stacked_on"  # in peftrun.json of such a part: hash of the adapter that it was trained on top of
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def check_adapter_name(name: str) -> None:
    """Raises: AdapterError: `name` cannot be the name of an adapter."""
    if not ADAPTER_NAME.fullmatch(name):
        valid = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "my_name"
        raise AdapterError(f"adapter name {name!r}: {NAME_RULE}; type adapter={{{valid}: PATH}}")
    if name in TENSOR_NAMES:
        raise AdapterError(explain_taken_name(name))


def explain_taken_name(name: str) -> str:
    """The line for an adapter's name that PEFT would take for a part of the model."""
    return f"adapter.{name}: is also the name of a part of the model; type another, such as adapter={{{name}_1: PATH}}"


def format_adapter_option(path: object, name: str) -> str:
    """The option as typed on the command line: `adapter=PATH` or `adapter.NAME=PATH`."""
    return f"adapter={path}" if name == "default" else f"adapter.{name}={path}"


@dataclass(frozen=True)
class AdapterRef:
    """An adapter that was found and checked, and what its files say; each is read once.

    Attributes:
        name: under which it is loaded.
        path: as typed: a run folder, an adapter folder, or an id on the Hub.
        folder: holds its files.
        hub: where it is on the Hub, and the commit; None if it did not come from there.
    """

    name: str
    path: str
    folder: Path
    hub: HubAdapter | None = None

    @property
    def option(self) -> str:
        """The option as typed."""
        return format_adapter_option(self.path, self.name)

    @property
    def label(self) -> str:
        """How messages on its content name it: its folder, or its id on the Hub."""
        return self.path if self.hub else str(self.folder)

    @property
    def weights(self) -> Path:
        """The file of its tensors."""
        return self.folder / ADAPTER_WEIGHTS

    @cached_property
    def config(self) -> dict[str, Any]:
        """The values of its `adapter_config.json`. Raises: ArtifactError: the file is not JSON."""
        return read_json(self.folder / ADAPTER_CONFIG)

    @cached_property
    def metadata(self) -> dict[str, Any] | None:
        """Its `peftrun.json`, or None for an adapter that peftrun did not make.

        Raises: ArtifactError: the file is not JSON, or does not say which base model the adapter was made for.
        """
        file = self.folder / PEFTRUN_METADATA
        if not file.is_file():
            return None
        metadata = records.read_metadata(self.folder)
        try:
            str(metadata["base"]["name"]), str(metadata["base"]["fingerprint"]["weights"])
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"{file}: does not say which base the adapter was made for; restore it or make the adapter again"
            ) from error
        return metadata


def resolve_adapters(paths: Mapping[str, str]) -> dict[str, AdapterRef]:
    """Name → adapter, for those of a run. Raises: AdapterError: see `resolve_adapter`."""
    return {name: resolve_adapter(path, name) for name, path in paths.items()}


def resolve_adapter(path: str, name: str = "default") -> AdapterRef:
    """The adapter in the folder `path`, in the run folder `path`, or downloaded from the Hub under the id `path`.

    Nothing is downloaded here: see `hub_download.pin_adapters`.

    Raises: AdapterError: there is none, the run that should have made it failed, or a file in it is missing,
        torn, a pickle, or not JSON.
    """
    hub = hub_adapters.parse_hub_adapter(path)
    shown = hub.typed if hub else path
    folder = _find_downloaded(hub, name) if hub else _find_here(path, name)
    if (folder / name / ADAPTER_CONFIG).is_file():  # one of several adapters that were saved together
        folder = folder / name
    adapter = AdapterRef(name, shown, folder, hub)
    _check_files(adapter)
    return adapter


def awaits_download(path: str, name: str) -> bool:
    """Whether `path` is an adapter on the Hub whose commit is not known yet, or not in the local cache."""
    hub = hub_adapters.parse_hub_adapter(path)
    if hub is None:
        return False
    folder = hub.find_folder()
    return folder is None or not any(
        all((place / file).is_file() for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)) for place in (folder, folder / name)
    )


def _find_downloaded(hub: HubAdapter, name: str) -> Path:
    folder = hub.find_folder()
    if folder is None:
        raise AdapterError(
            f"{format_adapter_option(hub.typed, name)}: was not downloaded from the Hub, or is gone from the local cache; connect and type the command again"
        )
    return folder


def _locate_folder(path: str, key: str) -> Path:
    """A folder of this machine, or the copy of one under a URL. Raises: AdapterError: that cannot be downloaded."""
    if not remote_files.is_url(path):
        return Path(path).expanduser()
    if problem := remote_files.explain_unusable(path):
        raise AdapterError(f"{key}: {problem}")
    return remote_files.fetch_folder(path.rstrip("/"), key, AdapterError, _belongs_to_adapter)


def _belongs_to_adapter(file: str) -> bool:
    """Whether a file, relative to a run or an adapter folder, is needed to load the adapter."""
    parent, _, name = file.rpartition("/")
    return (
        (name in (RECORD, CONFIG) and not parent)
        or parent.split("/")[0] in ("", ADAPTER)
        or name.startswith("adapter_")
    )


def _find_here(path: str, name: str) -> Path:
    key = format_adapter_option(path, name)
    folder = _locate_folder(path, key)
    if not path.strip():
        raise AdapterError(f"{key}: names no folder; name a run folder or one that holds {ADAPTER_CONFIG}")
    if not folder.is_dir():
        raise AdapterError(
            f"{key}: is not a folder; name a run folder, one that holds {ADAPTER_CONFIG}, or ORG/NAME@REVISION on the Hub"
        )
    return _find_in_run(folder, key) if (folder / RECORD).is_file() else folder


def virtual_tokens(adapters: Mapping[str, AdapterRef]) -> int:
    """Largest number of virtual tokens that one of the adapters prepends to a text; 0 for most methods."""
    return max((int(adapter.config.get("num_virtual_tokens") or 0) for adapter in adapters.values()), default=0)


def _find_in_run(run: Path, key: str) -> Path:
    record = records.read_record(run)
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


def _check_files(adapter: AdapterRef) -> None:
    folder, key = adapter.folder, adapter.option
    if not folder.is_dir() or not any(folder.iterdir()):
        raise AdapterError(f"{key}: the folder is empty; name a run folder or one that holds {ADAPTER_CONFIG}")
    if problem := explain_missing_files((file.name for file in folder.iterdir()), adapter.path):
        raise AdapterError(f"{key}: {problem}")
    try:
        _ = adapter.config, adapter.metadata
        entries = safetensors_header.read_header(adapter.weights)
    except ArtifactError as error:
        raise AdapterError(f"{key}: {error}") from error
    if not entries:  # X-LoRA's tensors are in folders below this one
        problem = adapter_rules.why_not_loadable(adapter.config)
        raise AdapterError(f"{key}: {problem or f'{ADAPTER_WEIGHTS} holds no tensor; make the adapter again'}")
    if adapter.metadata and STACKED_ON in adapter.metadata:
        whole = folder.parent.parent  # RUN/adapter/stack/1
        raise AdapterError(
            f"{key}: was trained on top of another adapter, without which it answers wrongly; type adapter={whole}, which holds both"
        )


def explain_missing_files(names: Iterable[str], path: str) -> str | None:
    """Why these files are no adapter that can be loaded, and what to do; None if they are one. `path`: where they are, as typed."""
    files = sorted(names)
    if ADAPTER_CONFIG not in files:
        if "config.json" in files:
            return f"is a full model, not an adapter (no {ADAPTER_CONFIG}); type model=pretrained model.name_or_path={path} and omit adapter"
        return f"holds no {ADAPTER_CONFIG}; name a run folder or an adapter folder"
    if ADAPTER_WEIGHTS in files:
        return None
    pickle = next((name for name in files if name.endswith(PICKLES)), None)
    if pickle:
        return f"{pickle} is a pickle, which can run code when read, and is refused; save the adapter again as {ADAPTER_WEIGHTS}"
    return f"{ADAPTER_WEIGHTS} is missing beside {ADAPTER_CONFIG}; restore it or make the adapter again"


def find_adapter_run(path: str) -> Path | None:
    """The folder of the run that made the adapter at `path`; None if it is in no run folder."""
    try:
        folder = _locate_folder(path, format_adapter_option(path, "default"))
    except AdapterError:  # reported where it is loaded
        return None
    if not folder.is_dir():  # an id on the Hub, whatever run the working directory is
        return None
    candidates = (folder, *list(folder.absolute().parents)[:2])  # RUN, RUN/adapter, RUN/adapter/NAME
    return next((run for run in candidates if (run / RECORD).is_file() and (run / CONFIG).is_file()), None)
