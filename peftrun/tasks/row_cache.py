"""Rows as tokens, kept between runs under everything that makes them what they are.

The name of a kept file is a hash of the contents of every source, the tokenizer and its chat template, every setting of the task,
the code that makes rows, and the versions of the libraries it uses: whatever changes, another file is looked for.
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
from peftrun.artifacts import fingerprint
from peftrun.config import usage
from peftrun.config.paths import cache_dir
from peftrun.config.schema.run import DataSpec, TaskSpec
from peftrun.data import sources
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files
from peftrun.tasks.messages import load_tools
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows

CODE_DIRS = [Path(__file__).parents[1] / name for name in ("data", "tasks")]  # what makes rows
LIBRARIES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


def load_cached_rows(kind: ModuleType, task: TaskSpec, tokenizer: Any) -> Any:
    """The task's rows: those kept from an earlier run, or made now and kept. What was said when they were made is said again.

    Raises: DataError: see the kind's `load_rows`.
    """
    key = _build_cache_key(task, tokenizer) if task.data.cache else None
    if key is None:
        return _load_rows(kind, task, tokenizer)[0]
    file = cache_dir() / "rows" / f"{key}.json"
    lock = FileLock(f"{file}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # of several processes one makes the rows, the others read them
    except OSError:  # a read-only cache costs time, nothing else
        return _load_rows(kind, task, tokenizer)[0]
    try:
        return _read_cached(file, kind, task) or _build_and_cache(file, kind, task, tokenizer)
    finally:
        lock.release()


def _load_rows(kind: ModuleType, task: TaskSpec, tokenizer: Any) -> tuple[Any, list[str]]:
    """The task's rows, made now, and the keys that were read. The tools that they are prompted with are part of their digest."""
    watched = usage.track_reads(task, "task")
    found = kind.load_rows(watched, tokenizer)
    read = usage.list_read_keys(watched)
    usage.mark_used(task, read)
    tools = load_tools(usage.strip_tracking(task).tools) if "task.tools" in read else ()
    if not tools:
        return found, read
    whole = json.dumps([found.digest, tools]).encode()
    return dataclasses.replace(found, digest=hashlib.sha256(whole).hexdigest()), read


def _build_and_cache(file: Path, kind: ModuleType, task: TaskSpec, tokenizer: Any) -> Any:
    with console.capture_messages() as said:
        found, read = _load_rows(kind, task, tokenizer)
    parts = {part: [vars(row) for row in getattr(found, part)] for part in ("train", "held_out")}
    kept = {**parts, "digest": found.digest, "tally": found.tally.as_dict(), "said": said, "read": read}
    text = json.dumps(kept, ensure_ascii=False)
    try:
        atomic_files.write_text(file, text)
    except ArtifactError as error:  # a full disk costs time at the next run, nothing else
        console.print_warning(str(error))
    return found


def _read_cached(file: Path, kind: ModuleType, task: TaskSpec) -> Any:
    """The rows in a kept file; None where there is none, or it is damaged."""
    if not file.is_file():
        return None
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        said, digest, read = kept["said"], kept["digest"], kept["read"]
        train, held_out = ([kind.Row(**row) for row in kept[part]] for part in ("train", "held_out"))
        tally = Tally.from_dict(kept["tally"])
    except (OSError, ValueError, KeyError, TypeError):
        console.print_info(f"data: kept rows {console.shorten_path(file)} are damaged; made anew")
        return None
    console.print_info("data: using cached rows (task.data.cache=false rebuilds them)")
    for line in said:
        console.print_info(line)
    usage.mark_used(task, read)
    return Rows(train, held_out, digest, tally)


def _build_cache_key(task: TaskSpec, tokenizer: Any) -> str | None:
    """None: a source's content cannot be told without fetching it."""
    sources = _fingerprint_sources(task.data)
    if sources is None:
        return None
    whole = {
        "sources": sources,
        "tokenizer": _describe_tokenizer(tokenizer),
        "task": dataclasses.asdict(usage.strip_tracking(task)),
        "tools": fingerprint.hash_file_cached(Path(task.tools).expanduser()) if task.tools else None,
        "code": [fingerprint.hash_file_cached(path) for folder in CODE_DIRS for path in sorted(folder.rglob("*.py"))],
        "libraries": [version(name) for name in LIBRARIES],
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _fingerprint_sources(data: DataSpec) -> list[str] | None:
    if data.source == "hub":
        commits = [one.revision or "" for one in sources.list_sources(data)]
        return commits if all(map(COMMIT_HASH.fullmatch, commits)) else None
    try:
        return [
            fingerprint.hash_file_cached(sources.resolve_source_file(data, one.path))
            for one in sources.list_sources(data)
        ]
    except OSError:  # whoever reads the rows says what is wrong with the file
        return None


def _describe_tokenizer(tokenizer: Any) -> list[str]:
    settings = {
        name: str(getattr(tokenizer, name, None))
        for name in ("special_tokens_map", "model_max_length", "chat_template")
    }
    if "strftime_now" in settings["chat_template"]:  # some templates write the day into every talk
        settings["today"] = date.today().isoformat()
    core = getattr(tokenizer, "backend_tokenizer", None)
    return [
        type(tokenizer).__name__,
        json.dumps(settings),
        core.to_str() if core else json.dumps(tokenizer.get_vocab()),
    ]
