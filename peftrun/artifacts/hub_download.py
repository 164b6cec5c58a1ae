"""Downloads adapters from the Hub, only an adapter's own files, and pins the commit. Light, but for huggingface_hub while it downloads."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from peftrun.artifacts import adapter_folder, hub_adapters, hub_cache
from peftrun.artifacts.adapter_folder import STACK
from peftrun.artifacts.hub_adapters import HubAdapter
from peftrun.artifacts.hub_cache import HubRepository
from peftrun.artifacts.run_layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MORE_TEMPLATES,
    PEFTRUN_METADATA,
    TOKENIZER_FILES,
)
from peftrun.errors import AdapterError

PEFT_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFTRUN_METADATA)
FILES = (*PEFT_FILES, *(f"{STACK}/*/{name}" for name in PEFT_FILES), *TOKENIZER_FILES, MORE_TEMPLATES)
MAX_NAMED = 5  # subfolders that an error names


def pin_adapter(path: str, name: str = "default") -> str:
    """The same path, but ORG/NAME@REVISION@COMMIT of an adapter on the Hub, which is downloaded unless its commit is here.

    Raises: AdapterError: there is no such adapter, it may not be read, or the Hub cannot be reached.
    """
    hub = hub_adapters.parse_hub_adapter(path)
    if hub is None or not adapter_folder.awaits_download(path, name):
        return path
    option = adapter_folder.format_adapter_option(hub.typed, name)
    repository = HubRepository(hub.id, hub.commit or hub.revision, option, "adapter=FOLDER", AdapterError)
    if repository.find_snapshot() is None:
        repository.check_reachable()
    # What is in the cache is asked for again: a branch may have moved. Without the Hub huggingface_hub takes it as it is.
    snapshot = repository.download([f"{folder}{file}" for folder in _list_folders(hub, name) for file in FILES])
    pinned = replace(hub, commit=snapshot.name)
    if adapter_folder.awaits_download(str(pinned), name):
        raise AdapterError(f"{option}: {_explain_no_adapter(pinned)}")
    from peftrun import console  # imports rich, which a refused command does not need

    console.print_info(f"adapter {name}: {hub.typed} on the Hub, commit {snapshot.name[:12]}")
    return str(pinned)


def pin_adapters(paths: Mapping[str, str], pin: Callable[[str, str], str] = pin_adapter) -> dict[str, str]:
    """The same for adapters by name. `pin`: `pin_adapter` or `pin_cached_adapter`."""
    return {name: pin(path, name) for name, path in paths.items()}


def pin_cached_adapter(path: str, name: str = "default") -> str:
    """`pin_adapter` from the local cache alone, for a preview, which asks the Hub nothing; unchanged, with a warning, if it is not there."""
    hub = hub_adapters.parse_hub_adapter(path)
    if hub is None or not adapter_folder.awaits_download(path, name):
        return path
    snapshot = hub_cache.find_snapshot(hub.id, hub.commit or hub.revision)
    pinned = str(replace(hub, commit=snapshot.name)) if snapshot else path
    if not adapter_folder.awaits_download(pinned, name):
        return pinned
    option = adapter_folder.format_adapter_option(hub.typed, name)
    from peftrun import console

    console.print_warning(
        f"{option}: is not downloaded yet, so this is for the defaults in place of its base model, task and method; type action=inspect {option} first"
    )
    return path


def _list_folders(hub: HubAdapter, name: str) -> list[str]:
    """Folders of the repository where the adapter may be, with a slash at their ends: its own, and below it one of its name."""
    top = f"{hub.subfolder}/" if hub.subfolder else ""
    return [top, f"{top}{name}/"]


def _explain_no_adapter(hub: HubAdapter) -> str:
    """Why what the repository holds is no adapter."""
    files = [PurePosixPath(name) for name in _list_repository(hub)]
    place = PurePosixPath(hub.subfolder)
    here = [file.name for file in files if file.parent == place]
    others = [str(file.parent) for file in files if file.name == ADAPTER_CONFIG and file.parent != place]
    if ADAPTER_CONFIG not in here and others:
        named = ", ".join(others[:MAX_NAMED]) + (f" and {len(others) - MAX_NAMED} more" if others[MAX_NAMED:] else "")
        return f"its adapters are in subfolders ({named}); type adapter={hub.id}/{others[0]}"
    return (
        adapter_folder.explain_missing_files(here, hub.place)
        or "is incomplete in the local cache; connect and type it again"
    )


def _list_repository(hub: HubAdapter) -> list[str]:
    """Paths of the files in the repository; without the Hub, of those in the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi().list_repo_files(hub.id, revision=hub.commit)
    except (OSError, HTTPError):
        snapshot = hub_cache.find_snapshot(hub.id, hub.commit) or Path()
        return [str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()]
