"""Checks that the rows have the columns that a task names, before any model is loaded. Light."""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from peftrun.config import override_syntax
from peftrun.config.schema.run import DataSpec, TaskSpec
from peftrun.data import sources, templates
from peftrun.data.files import Row
from peftrun.errors import DataError

TEMPLATES = ("task.prompt_template", "task.completion_template")
# Config fields that name a column, of `task` and of `task.data`.
TASK_COLUMN_KEYS = (
    "messages_column", "tokens_column", "tags_column", "chosen_column", "rejected_column", "desirable_column",
)  # fmt: skip
DATA_COLUMN_KEYS = ("label_column", "group_column", "adapter_column")
LIKELY_NAMES = {  # role of a column → common names, the likeliest first
    "prompt": ("prompt", "question", "instruction", "query", "input", "source", "user", "problem"),
    "completion": ("completion", "answer", "output", "response", "target", "reply", "label", "summary", "solution"),
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat"),
    "chosen": ("chosen", "preferred", "accepted"),
    "rejected": ("rejected", "dispreferred"),
    "desirable": ("label", "desirable"),
}
ROLE_KEYS = {  # role of a column → the key that names it
    "prompt": "task.prompt_template",
    "completion": "task.completion_template",
    **{key.removesuffix("_column"): f"task.{key}" for key in TASK_COLUMN_KEYS},
}
PREFERENCES = ("preference", "unpaired_preference", "prompt_only")
ALPACA_TEMPLATE = "{instruction}\n\n{input?}"
ColumnScan = tuple[Row, frozenset[str]]  # columns with a value each; required columns that are missing
_SCAN_CACHE: dict[Any, ColumnScan] = {}
MAX_JSON_BYTES = 64 << 20  # a .json list must be read completely to see its columns


def check_columns(task: TaskSpec) -> None:
    """Raises: DataError: a source is empty or cannot be read, or none of its rows has a column that the task names."""
    eval_source = sources.get_eval_source(task.data)
    for source in [sources.get_train_source(task.data), *([eval_source] if eval_source else [])]:
        check_source_columns(source, task)
    for name, mix in (task.data.mixture or {}).items():
        check_source_columns(sources.make_mix_source(name, mix, task.data), apply_mix_templates(task, mix))


def apply_mix_templates(task: TaskSpec, mix: Any) -> TaskSpec:
    """The task with the templates of a further source, if it has any."""
    return replace(
        task,
        prompt_template=mix.prompt_template or task.prompt_template,
        completion_template=mix.completion_template or task.completion_template,
    )


def check_source_columns(source: sources.DataSource, task: TaskSpec) -> None:
    """Reads rows until each required column has occurred. Raises: DataError: see `check_columns`."""
    computed = {"label"} if task.data.label_column else set()  # `{label}` is the label's word, not a column
    required = [
        *((key, name) for key in TEMPLATES for name in templates.list_columns(_get_template(key, task)) if name not in computed),
        *list_named_columns(task).items(),
    ]  # fmt: skip
    present, missing = _scan_columns(source, task.data, frozenset(name for _, name in required))
    names = ", ".join(sorted(filter(None, present)))
    # A csv file with another delimiter is read as one column.
    header = next(filter(None, present), "") if len(present) == 1 else ""
    delimiter = next((sign for sign in (";", "\t", "|") if sign in header), None)
    advice = (
        f"its cells are separated by {delimiter!r}; save it with commas, or as .tsv with tabs" if delimiter else None
    )
    problems = [
        _format_missing(source, key, name, names, advice or _suggest_fix(key, name, present, task))
        for key, name in required
        if name in missing
    ]
    for key in TEMPLATES:
        template = _get_template(key, task)
        if template in present:
            problems.append(
                f"{key}={template}: is that very word in every row, and a column has this name; type {_format_override(key, f'{{{template}}}')}"
            )
    other_task = [line for line in problems if "; type task=" in line]
    if problems:
        raise DataError(*(other_task[:1] or problems))  # if another task is meant, one line is enough


def _format_missing(source: sources.DataSource, key: str, name: str, names: str, advice: str) -> str:
    """One line for a missing column. One that another source has, as the first has it, is no reason to change the key for all."""
    if source.key == "task.data.path":
        return f"{key}: the data has no column {name!r}; columns: {names}; {advice}"
    advice = f"name a file that has the columns of task.data.path, or rename {name!r} there"
    mix = source.key.removesuffix(".path")
    if key in TEMPLATES and mix != source.key:
        advice = f'write {key.removeprefix("task.")}: "…" under {mix}, or rename the column'
    return f"{source.key}={source.path}: has no column {name!r}, which {key} names; columns: {names}; {advice}"


def is_cheap_to_scan(data: DataSpec) -> bool:
    """Whether reading the first rows is fast: all sources are files, and none is a large JSON list."""
    if data.source == "hub":
        return False
    files = [sources.resolve_source_file(data, source) for source in sources.list_sources(data)]
    return all(file.is_file() and (file.suffix != ".json" or file.stat().st_size < MAX_JSON_BYTES) for file in files)


def list_named_columns(task: TaskSpec) -> dict[str, str]:
    """Config key → the column that it names, for the keys that are set."""
    fields = {f"task.{key}": getattr(task, key) for key in TASK_COLUMN_KEYS}
    fields |= {f"task.data.{key}": getattr(task.data, key) for key in DATA_COLUMN_KEYS}
    return {key: name for key, name in fields.items() if name}


def guess_task(file: Path) -> str | None:
    """The overrides for the task that a file's columns fit; None if they fit none, or the file cannot be read."""
    try:
        with file.open("rb") as stream:
            row = next(iter(sources.READERS[file.suffix.lower()](stream)))
    except (KeyError, OSError, StopIteration, ValueError):
        return None
    return _guess_task_override(row)


def _scan_columns(source: sources.DataSource, data: DataSpec, required: frozenset[str]) -> ColumnScan:
    """Reads rows until each required column has occurred. Cached, so that the cells of a sweep read a source once."""
    file = None if data.source == "hub" else sources.resolve_source_file(data, source)
    version = (file.stat().st_mtime_ns, file.stat().st_size) if file and file.is_file() else ()
    key = (source, data.source, data.package, data.streaming, required, version)
    if key not in _SCAN_CACHE:
        missing, columns = required, Row()
        for row in sources.read_source(data, source):
            columns = row | columns
            missing = frozenset(name for name in missing if not templates.has_column(row, name))
            if not missing:
                break
        _SCAN_CACHE[key] = columns, missing
    return _SCAN_CACHE[key]


def _get_template(key: str, task: TaskSpec) -> str:
    return (task.prompt_template if key == "task.prompt_template" else task.completion_template) or ""


def _suggest_fix(key: str, name: str, row: Row, task: TaskSpec) -> str:
    """What to type: the column that is likely meant instead of the missing one, else the task that the columns fit."""
    template = _get_template(key, task) if key in TEMPLATES else None
    only_column = template is None or bool(templates.get_sole_column(template))
    role = next((role for role, role_key in ROLE_KEYS.items() if role_key == key), "")
    near = get_close_matches(name, row, n=1)
    if not near and only_column and (likely := _find_likely_column(role, row)):
        near = [likely]
    if near:
        return f"type {key}={near[0]}" if template is None else f"type {_format_override(key, template.replace(name, near[0]))}"  # fmt: skip
    prompt = _find_likely_column("prompt", row)
    if key == "task.messages_column" and task.type in PREFERENCES and prompt:
        return f"type task.messages_column=null {_format_override('task.prompt_template', f'{{{prompt}}}')}"
    if only_column and role in LIKELY_NAMES and (other := _guess_task_override(row)):
        return f"type {other}"
    return f"type {key}=COLUMN" if template is None else f"type {_format_override(key, '{COLUMN}')}"


def _find_likely_column(role: str, row: Row) -> str | None:
    return next((name for name in LIKELY_NAMES.get(role, ()) if name in row), None)


def _guess_task_override(row: Row) -> str | None:
    """The overrides for the task that these columns fit; None if they fit none."""
    columns = {role: _find_likely_column(role, row) for role in LIKELY_NAMES}
    if columns["chosen"] and columns["rejected"]:
        return _format_task_override(
            "task=preferences", columns, "chosen", "rejected", "messages" if columns["messages"] else "prompt"
        )
    if columns["messages"]:
        return _format_task_override("task=chat", columns, "messages")
    if {"instruction", "input", "output"} <= row.keys():  # Alpaca's columns
        return "task=instruction " + " ".join(
            [
                _format_override("task.prompt_template", ALPACA_TEMPLATE),
                _format_override("task.completion_template", "{output}"),
            ]
        )
    if columns["prompt"] and columns["completion"]:
        return _format_task_override("task=instruction", columns, "prompt", "completion")
    return "task=plain_text" if "text" in row and len(row) == 1 else None


def _format_task_override(task: str, columns: dict[str, str | None], *roles: str) -> str:
    """The task with an override for each column whose name is not the task's default."""
    overrides = [task]
    for role in roles:
        column = columns[role]
        if role == "messages" and task == "task=preferences":
            overrides += [f"task.messages_column={column}", "task.prompt_template=null"]
        elif column != role:
            overrides.append(
                _format_override(ROLE_KEYS[role], f"{{{column}}}")
                if ROLE_KEYS[role] in TEMPLATES
                else f"{ROLE_KEYS[role]}={column}"
            )
    return " ".join(overrides)


def _format_override(key: str, template: str) -> str:
    return override_syntax.join_overrides([override_syntax.quote_override(key, template)])
