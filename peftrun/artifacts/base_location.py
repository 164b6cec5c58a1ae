"""Where a base model is: on this disk, in the caches, or on the Hub; and files that must not be in its folder. Light."""

import os
from pathlib import Path

from peftrun.artifacts import hub_cache
from peftrun.artifacts.hub_cache import HubRepository
from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peftrun.config.paths import cache_dir
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.system.packages import find_package_dir

TEXT_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.spm"]  # everything but weights
HUB_FILES = [*TEXT_FILES, "*.safetensors"]


def resolve_model_path(spec: ModelSpec) -> Path:
    """The local path of `model.name_or_path`, inside its package if it has one. For a Hub id or a missing package this path does not exist."""
    if spec.package:
        return (find_package_dir(spec.package) or Path(os.devnull)) / spec.name_or_path
    return Path(spec.name_or_path).expanduser()


def find_base_dir(spec: ModelSpec) -> Path | None:
    """The folder of a base model's safetensors on this disk; None if it must still be downloaded or converted."""
    path = resolve_model_path(spec)
    if path.suffix == ".gguf":  # by name alone: hashing the file, as the conversion does, takes too long here
        return next(iter(sorted((cache_dir() / "models").glob(f"{path.stem}-{'[0-9a-f]' * 16}"))), None)
    if path.is_dir():
        return path
    return hub_cache.find_snapshot(spec.name_or_path, spec.revision)


def find_base_config(spec: ModelSpec) -> Path | None:
    """The base model's `config.json` on this disk; None if it must still be downloaded or converted."""
    folder = find_base_dir(spec)
    return folder / "config.json" if folder and (folder / "config.json").is_file() else None


def fetch_base_dir(spec: ModelSpec, weights: bool = True) -> Path:
    """The base model's folder: local, or downloaded at its revision, with or without weights. Not of a GGUF file.

    Raises: ModelError: it does not exist, the Hub cannot be reached, or it is an adapter's folder.
    """
    path = resolve_model_path(spec)
    folder = path.resolve() if path.is_dir() else _download_base(spec, weights)
    stray = find_stray_adapter(folder, spec.name_or_path)
    if stray:
        raise ModelError(stray)
    return folder


def _download_base(spec: ModelSpec, weights: bool) -> Path:
    """Its folder in the local cache; Python files only with trust_remote_code."""
    patterns = [*(HUB_FILES if weights else TEXT_FILES), *(["*.py"] if spec.trust_remote_code else [])]
    # without adapter files, which transformers would load silently: see find_stray_adapter
    return _get_repository(spec).download(patterns, ignore=["adapter_*"])


def check_hub_reachable(spec: ModelSpec) -> None:
    """Checks within seconds, before anything heavy is imported, that a base model on the Hub can be downloaded.

    Raises: ModelError: it is not in the local cache, and the Hub does not answer.
    """
    if not (spec.package or resolve_model_path(spec).exists() or find_base_config(spec)):
        _get_repository(spec).check_reachable()


def _get_repository(spec: ModelSpec) -> HubRepository:
    option = f"model.name_or_path={spec.name_or_path}"
    copy_option = "model=pretrained model.name_or_path=FOLDER"
    return HubRepository(spec.name_or_path, spec.revision, option, copy_option, ModelError)


def converted_gguf_dir(file: Path) -> Path:
    """The folder in the cache for a GGUF file's safetensors, named by the file's hash; it exists once the file is converted."""
    from peftrun.artifacts import fingerprint

    return cache_dir() / "models" / f"{file.stem}-{fingerprint.hash_file_cached(file)[:16]}"


def find_stray_adapter(folder: Path, name: str) -> str | None:
    """Why a folder cannot be a base model: an adapter in it, which transformers would load silently with the base model; else None."""
    if (folder / ADAPTER / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return f"model.name_or_path={name}: is a run with an adapter, not a base; type adapter={name}"
    files = [file for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if (folder / file).is_file()]
    if not files:
        return None
    if not (folder / "config.json").is_file():
        return f"model.name_or_path={name}: is an adapter, not a base; type adapter={name} and name its base"
    return (
        f"model.name_or_path={name}: {' and '.join(files)} of an adapter in it would be loaded with the base; "
        "move them to a folder of their own, and type adapter=THAT_FOLDER to use them"
    )
