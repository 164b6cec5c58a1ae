"""Files and folders under a URL (s3://, gs://, hf://, https://, …), downloaded with fsspec into the local cache. Light.

fsspec is imported for a URL only. A download is kept under the version that the storage reports (ETag, checksum, date), so that a file
that has not changed is downloaded once, and one that has changed is downloaded again.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from peftrun.config.paths import cache_dir
from peftrun.errors import DataError, PeftrunError
from peftrun.formatting import format_bytes
from peftrun.io import atomic_files

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
WEB = ("http", "https")
WEB_VERSION = ("ETag", "Content-MD5", "Digest", "Last-Modified")  # headers of an answer that change with the content
EXAMPLES = "s3://BUCKET/PATH, gs://BUCKET/PATH, hf://datasets/ORG/NAME/PATH, https://HOST/PATH or file:///PATH"


def is_url(path: str) -> bool:
    """Whether a path names a file by URL, not on this machine."""
    return bool(URL.match(path))


def get_file_name(path: str) -> str:
    """The last part of a URL without its query, or of a path."""
    return PurePosixPath(unquote(urlsplit(path).path)).name if is_url(path) else Path(path).name


def explain_unusable(url: str) -> str | None:
    """Why nothing can be read under this URL, and what to type; None if something may be. No network is needed."""
    from fsspec.registry import get_filesystem_class, known_implementations

    protocol = url.partition("://")[0]
    if urlsplit(url).password is not None:
        return "contains a password, which config.yaml would store; set it in the environment that the storage's client reads, and omit it here"
    known = known_implementations.get(protocol)
    package = str(known["class"]).split(".")[0] if known else "fsspec"
    if package != "fsspec":  # found without importing it, which takes seconds
        return None if find_spec(package) else f"needs package {package}; type `pip install {package}`"
    try:
        get_filesystem_class(protocol)
    except ValueError:
        return f"fsspec knows no {protocol}://; type {EXAMPLES}"
    except ImportError as error:
        advice = "; type `pip install aiohttp requests`" if protocol in WEB else ""
        return f"cannot be read here ({error}){advice}"
    return None


def locate_file(path: str, option: str) -> Path:
    """The file that a config key names: on this disk, or downloaded if it has a URL. Raises: DataError: see `fetch_file`."""
    return fetch_file(path, option) if is_url(path) else Path(path).expanduser()


def fetch_file(url: str, option: str, fault: type[PeftrunError] = DataError) -> Path:
    """The file under a URL on this disk, with its name.

    Args: option: how messages name it, `task.data.path=URL`.
    Raises: `fault`: it cannot be read, or is a folder.
    """
    with report_errors(option, fault):
        storage, path = open_url(url)
        if _is_local(storage):
            return Path(path)
        info = storage.info(path)
        if info["type"] == "directory":
            raise fault(f"{option}: is a folder; name a file in it")
        folder = _get_cache_folder(url, [_get_version(url, info)])
        name = get_file_name(url) or "file"
        _download(folder, option, {name: path}, info.get("size"), storage)
        return folder / name


def fetch_folder(url: str, option: str, fault: type[PeftrunError], is_wanted: Callable[[str], bool]) -> Path:
    """The folder under a URL on this disk, with those of its files whose relative path is wanted.

    Raises: `fault`: it cannot be read, or holds no such file.
    """
    with report_errors(option, fault):
        storage, path = open_url(url)
        if _is_local(storage):
            return Path(path)
        if url.partition("://")[0] in WEB:
            raise fault(f"{option}: https:// has no folders; name one on s3://, gs:// or hf://")
        files = {name.removeprefix(path).lstrip("/"): info for name, info in storage.find(path, detail=True).items()}
        files = {name: info for name, info in sorted(files.items()) if is_wanted(name)}
        if not files:
            raise fault(f"{option}: there is no such folder, or nothing of a run in it; check the URL")
        versions = [part for name, info in files.items() for part in (name, _get_version(url, info))]
        folder = _get_cache_folder(url, versions)
        size = sum(info.get("size") or 0 for info in files.values())
        _download(folder, option, {name: info["name"] for name, info in files.items()}, size, storage)
        return folder


def open_url(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, which has forgotten what it knew of its files, and the path in it."""
    from fsspec.core import url_to_fs

    storage, path = url_to_fs(url)
    storage.invalidate_cache()
    return storage, str(path).rstrip("/")


@contextmanager
def report_errors(option: str, fault: type[PeftrunError], doing: str = "read") -> Iterator[None]:
    """Turns whatever a storage's client raises inside into one line."""
    try:
        yield
    except PeftrunError:
        raise
    except Exception as error:  # each storage's client has errors of its own, without a common base class
        raise fault(
            f"{option}: cannot be {doing} ({explain_error(error)}); check the URL, the connection and the credentials"
        ) from error


def explain_error(error: Exception) -> str:
    """The reason of an error in one line."""
    if isinstance(error, FileNotFoundError):
        return "it was not found"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_local(storage: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(storage, LocalFileSystem)


def _get_version(url: str, info: Mapping[str, Any]) -> str | None:
    """What changes with the content of a file; None if the storage does not say."""
    if url.partition("://")[0] not in WEB:
        return json.dumps(info, sort_keys=True, default=str)
    headers = [info.get(name) for name in WEB_VERSION]
    return json.dumps(headers) if any(headers) else None


def _get_cache_folder(url: str, versions: list[str | None]) -> Path:
    place = cache_dir() / "remote" / hashlib.sha256(url.encode()).hexdigest()[:16]
    return place / (hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:16] if all(versions) else "unversioned")


def _download(folder: Path, option: str, files: Mapping[str, str], size: int | None, storage: Any) -> None:
    """Downloads files into `folder`, which then has all of them; does nothing if it is there. `files`: relative path → path in the storage."""
    # Imported late: commands that only check what was typed import this module.
    from filelock import FileLock

    from peftrun import console

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # processes of one run want the same file
        if folder.name == "unversioned":
            _download_anew(folder, files, storage)
        elif not folder.is_dir():
            console.print_info(f"downloading {option}{f' ({format_bytes(size)})' if size else ''}")
            with atomic_files.create_folder(folder) as temporary:
                _get_files(temporary, files, storage)


def _download_anew(folder: Path, files: Mapping[str, str], storage: Any) -> None:
    """The same where the storage reports no version: each file is replaced, if its content has changed."""
    folder.mkdir(exist_ok=True)
    for name, path in files.items():
        with atomic_files.create_folder(folder / ".new") as temporary:
            _get_files(temporary, {name: path}, storage)
        new, old = folder / ".new" / name, folder / name
        if not old.is_file() or atomic_files.hash_file(new) != atomic_files.hash_file(old):
            new.replace(old)
        new.unlink(missing_ok=True)
        new.parent.rmdir()


def _get_files(folder: Path, files: Mapping[str, str], storage: Any) -> None:
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        storage.get_file(path, str(folder / name))
