"""Disk cache of tokenized rows.

The name of a cache file is a hash of everything that determines the rows: the contents of every source, the tokenizer and its chat
template, every setting of the task, peftrun's code for rows, and the versions of the libraries it uses.
"""

import dataclasses
import hashlib
import json
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

from peftrun import console
from peftrun.artifacts import fingerprint, remote_files
from peftrun.config import usage
from peftrun.config.paths import cache_dir
from peftrun.config.schema.run import TaskSpec
from peftrun.data import sources
from peftrun.errors import ArtifactError, DataError
from peftrun.io import atomic_files
from peftrun.tasks.messages import load_tools
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows

CODE_DIRS = [Path(__file__).parents[1] / name for name in ("data", "tasks")]  # part of the cache key
LIBRARIES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


def load_cached_rows(kind: ModuleType, task: TaskSpec, tokenizer: Any) -> Any:
    """The task's rows from the cache, or loaded and cached. Messages logged when they were made are logged again.

    Raises: DataError: see `load_rows` of the task type.
    """
    key = _build_cache_key(task, tokenizer) if task.data.cache else None
    if key is None:
        return _load_rows(kind, task, tokenizer)[0]
    file = cache_dir() / "rows" / f"{key}.json"
    lock = FileLock(f"{file}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # one process makes the rows, the others read them
    except OSError:  # a read-only cache directory: the run goes on without the cache
        return _load_rows(kind, task, tokenizer)[0]
    try:
        cached = _read_cached(file, kind, task)
        if cached is not None:
            return cached
        with console.capture_messages() as messages:
            rows, read = _load_rows(kind, task, tokenizer)
        splits = {split: [vars(row) for row in getattr(rows, split)] for split in ("train", "held_out")}
        values = {**splits, "digest": rows.digest, "tally": rows.tally.as_dict(), "said": messages, "read": read}
        try:
            atomic_files.write_text(file, json.dumps(values, ensure_ascii=False))
        except ArtifactError as error:  # such as a full disk: the run goes on without the cache
            console.print_warning(str(error))
        return rows
    finally:
        lock.release()


def _load_rows(kind: ModuleType, task: TaskSpec, tokenizer: Any) -> tuple[Any, list[str]]:
    """The task's rows without the cache, and the config keys that were read."""
    tracked = usage.track_reads(task, "task")
    loaded = kind.load_rows(tracked, tokenizer)
    read = usage.list_read_keys(tracked)
    usage.mark_used(task, read)
    tools = load_tools(usage.strip_tracking(task).tools) if "task.tools" in read else ()
    if not tools:
        return loaded, read
    content = json.dumps([loaded.digest, tools]).encode()  # tools are part of what is trained on
    return dataclasses.replace(loaded, digest=hashlib.sha256(content).hexdigest()), read


def _read_cached(file: Path, kind: ModuleType, task: TaskSpec) -> Any:
    """The rows in a cache file; None if it is missing or damaged."""
    if not file.is_file():
        return None
    try:
        cached = json.loads(file.read_text(encoding="utf-8"))
        messages, digest, read = cached["said"], cached["digest"], cached["read"]
        train, held_out = ([kind.Row(**row) for row in cached[split]] for split in ("train", "held_out"))
        tally = Tally.from_dict(cached["tally"])
    except (OSError, ValueError, KeyError, TypeError):
        console.print_info(f"data: cached rows {console.shorten_path(file)} are damaged; rebuilding them")
        return None
    console.print_info("data: using cached rows (task.data.cache=false rebuilds them)")
    for message in messages:
        console.print_info(message)
    usage.mark_used(task, read)  # as if the rows had been loaded, so that no key is reported as unused
    return Rows(train, held_out, digest, tally)


def _build_cache_key(task: TaskSpec, tokenizer: Any) -> str | None:
    """The hash that names the cache file; None if the content of a source is unknown without fetching it."""
    listed = sources.list_sources(task.data)
    if task.data.source == "hub":  # a branch or tag may move, a commit does not
        source_digests = [source.revision or "" for source in listed]
        if not all(map(COMMIT_HASH.fullmatch, source_digests)):
            return None
    else:
        try:
            files = [sources.resolve_source_file(task.data, source) for source in listed]
            source_digests = [fingerprint.hash_file_cached(file) for file in files]
        except (OSError, DataError):  # loading the rows raises the error with its reason
            return None
    inputs = {
        "sources": source_digests,
        "tokenizer": _describe_tokenizer(tokenizer),
        "task": dataclasses.asdict(usage.strip_tracking(task)),
        "tools": fingerprint.hash_file_cached(remote_files.locate_file(task.tools, "task.tools"))
        if task.tools
        else None,
        "code": [fingerprint.hash_file_cached(path) for folder in CODE_DIRS for path in sorted(folder.rglob("*.py"))],
        "libraries": [version(name) for name in LIBRARIES],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _describe_tokenizer(tokenizer: Any) -> list[str]:
    settings = {
        name: str(getattr(tokenizer, name, None))
        for name in ("special_tokens_map", "model_max_length", "chat_template")
    }
    if "strftime_now" in settings["chat_template"]:  # the template writes the date into every conversation
        settings["today"] = date.today().isoformat()
    backend = getattr(tokenizer, "backend_tokenizer", None)  # None for tokenizers in Python
    return [
        type(tokenizer).__name__,
        json.dumps(settings),
        backend.to_str() if backend else json.dumps(tokenizer.get_vocab()),
    ]
