"""The columns that a task asks for and those that its rows have, looked at before anything is loaded. Light."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from peftrun.config import override_syntax
from peftrun.config.schema.run import DataSpec, TaskSpec
from peftrun.data import sources, templates
from peftrun.data.files import Row
from peftrun.errors import DataError

TEMPLATES = ("task.prompt", "task.completion")
# Fields that name a column: of a task, of its data.
TASK_COLUMN_KEYS = ("messages", "words", "tags", "chosen", "rejected", "desirable")
DATA_COLUMN_KEYS = ("label_column", "group_column", "adapter_column")
LIKELY_NAMES = {  # what a column is for → names that others give it, the likeliest first
    "prompt": ("prompt", "question", "instruction", "query", "input", "source", "user", "problem"),
    "completion": ("completion", "answer", "output", "response", "target", "reply", "label", "summary", "solution"),
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat"),
    "chosen": ("chosen", "preferred", "accepted"),
    "rejected": ("rejected", "dispreferred"),
    "desirable": ("label", "desirable"),
}
PREFERENCES = ("preference", "unpaired_preference", "prompt_only")
ALPACA_TEMPLATE = "{instruction}\n\n{input?}"
ColumnScan = tuple[Row, frozenset[str]]  # the columns, each with a value; those of the wanted that are not there
_SCAN_CACHE: dict[Any, ColumnScan] = {}
MAX_JSON_BYTES = 64 << 20  # bytes of a .json file that may be read whole only to see its columns


def check_columns(task: TaskSpec) -> None:
    """Raises: DataError: a source is empty or cannot be read, or a column that the task asks for is in none of its rows."""
    apart = sources.get_eval_source(task.data)
    for source in [sources.get_train_source(task.data), *([apart] if apart else [])]:
        check_source_columns(source, task)
    for name, one in (task.data.mix or {}).items():
        check_source_columns(sources.make_mix_source(name, one, task.data), apply_mix_templates(task, one))


def apply_mix_templates(task: TaskSpec, one: Any) -> TaskSpec:
    """The task with the templates of a source that is mixed in, where that has some of its own."""
    return replace(task, prompt=one.prompt or task.prompt, completion=one.completion or task.completion)


def check_source_columns(source: sources.DataSource, task: TaskSpec) -> None:
    """Reads on until each column that is asked for was in a row. Raises: DataError: see `check`."""
    wanted = list(_iter_required_columns(task))
    present, absent = _scan_columns(source, task.data, frozenset(name for _, name in wanted))
    problems = [
        f"{key}: the data has no column {name!r}; columns: {', '.join(sorted(filter(None, present)))}; {_suggest_delimiter(present) or _suggest_fix(key, name, present, task)}"
        for key, name in wanted
        if name in absent
    ]
    problems += [
        f"{key}={_get_template(key, task)}: is that very word in every row, and a column has this name; type {_format_override(key, f'{{{_get_template(key, task)}}}')}"
        for key in TEMPLATES
        if _get_template(key, task) in present
    ]
    other = [line for line in problems if "; type task=" in line]
    if problems:
        raise DataError(*(other[:1] or problems))  # of a task that is not meant, one column says it all


def _suggest_delimiter(row: Row) -> str | None:
    """What to do about a csv whose cells stand apart by another sign, which makes one column of all."""
    sign = next((one for one in (";", "\t", "|") if len(row) == 1 and one in next(iter(row))), None)
    return f"its cells stand apart by {sign!r}; save it with commas, or as .tsv with tabs" if sign else None


def is_cheap_to_scan(data: DataSpec) -> bool:
    """Whether a look at the first rows costs next to nothing: they are in files, and none is a long list of JSON."""
    if data.source == "hub":
        return False
    files = [sources.resolve_source_file(data, one.path) for one in sources.list_sources(data)]
    return all(file.is_file() and (file.suffix != ".json" or file.stat().st_size < MAX_JSON_BYTES) for file in files)


def list_named_columns(task: TaskSpec) -> dict[str, str]:
    """Field → the column that it names, of the fields that name one."""
    fields = {f"task.{key}": getattr(task, key) for key in TASK_COLUMN_KEYS}
    fields |= {f"task.data.{key}": getattr(task.data, key) for key in DATA_COLUMN_KEYS}
    return {key: name for key, name in fields.items() if name}


def guess_task(file: Path) -> str | None:
    """The task that a file's columns look like, as it is typed; None: they look like none, or cannot be read."""
    try:
        with file.open("rb") as stream:
            row = next(iter(sources.READERS[file.suffix.lower()](stream)))
    except (KeyError, OSError, StopIteration, ValueError):
        return None
    return _guess_task_override(row)


def _iter_required_columns(task: TaskSpec) -> Iterator[tuple[str, str]]:
    made = {"label"} if task.data.label_column else set()
    for key in TEMPLATES:
        yield from ((key, name) for name in templates.list_columns(_get_template(key, task)) if name not in made)
    yield from list_named_columns(task).items()


def _scan_columns(source: sources.DataSource, data: DataSpec, wanted: frozenset[str]) -> ColumnScan:
    """What the rows have in place of the columns that are wanted; each source is looked at once, also for all cells of a sweep."""
    file = None if data.source == "hub" else sources.resolve_source_file(data, source.path)
    when = (file.stat().st_mtime_ns, file.stat().st_size) if file and file.is_file() else ()
    key = (source, data.source, data.package, data.streaming, wanted, when)
    if key not in _SCAN_CACHE:
        _SCAN_CACHE[key] = _read_until_complete(sources.read_source(data, source), wanted)
    return _SCAN_CACHE[key]


def _read_until_complete(rows: Iterable[Row], wanted: frozenset[str]) -> ColumnScan:
    absent, columns = wanted, Row()
    for row in rows:
        columns = row | columns
        absent = frozenset(name for name in absent if not templates.has_column(row, name))
        if not absent:
            break
    return columns, absent


def _get_template(key: str, task: TaskSpec) -> str:
    return (task.prompt if key == "task.prompt" else task.completion) or ""


def _suggest_fix(key: str, name: str, row: Row, task: TaskSpec) -> str:
    """What to type: the column that is meant in place of the one that is not there; else the task that the columns look like."""
    template = _get_template(key, task) if key in TEMPLATES else None
    role = key.rpartition(".")[2]
    near = get_close_matches(name, row, n=1)
    if (
        not near
        and (template is None or templates.get_sole_column(template))
        and (likely := _find_likely_column(role, row))
    ):
        near = [likely]
    if (
        not near
        and key == "task.messages"
        and task.kind in PREFERENCES
        and (given := _find_likely_column("prompt", row))
    ):
        return f"type task.messages=null {_format_override('task.prompt', f'{{{given}}}')}"
    whole = template is None or templates.get_sole_column(template)
    if not near and whole and role in LIKELY_NAMES and (other := _guess_task_override(row)):
        return f"type {other}"
    if template is None:
        return f"type {key}={near[0] if near else 'COLUMN'}"
    mended = template.replace(name, near[0]) if near else "{COLUMN}"
    return "type " + _format_override(key, mended)


def _find_likely_column(role: str, row: Row) -> str | None:
    return next((one for one in LIKELY_NAMES.get(role, ()) if one in row), None)


def _guess_task_override(row: Row) -> str | None:
    """The task that these columns look like, as it is typed."""
    found = {role: _find_likely_column(role, row) for role in LIKELY_NAMES}
    if found["chosen"] and found["rejected"]:
        return _format_task_override(
            "task=preferences", found, "chosen", "rejected", "messages" if found["messages"] else "prompt"
        )
    if found["messages"]:
        return _format_task_override("task=chat", found, "messages")
    if {"instruction", "input", "output"} <= row.keys():
        return "task=instruction " + " ".join(
            [_format_override("task.prompt", ALPACA_TEMPLATE), _format_override("task.completion", "{output}")]
        )
    if found["prompt"] and found["completion"]:
        return _format_task_override("task=instruction", found, "prompt", "completion")
    return "task=text" if "text" in row and len(row) == 1 else None


def _format_task_override(task: str, found: dict[str, str | None], *roles: str) -> str:
    """With the columns that are not called as the task calls them."""
    said = [task]
    for role in roles:
        column = found[role]
        if role == "messages" and task == "task=preferences":
            said += [f"task.messages={column}", "task.prompt=null"]
        elif column != role:
            said.append(
                _format_override(f"task.{role}", f"{{{column}}}")
                if f"task.{role}" in TEMPLATES
                else f"task.{role}={column}"
            )
    return " ".join(said)


def _format_override(key: str, template: str) -> str:
    return override_syntax.join_overrides([override_syntax.quote_override(key, template)])
