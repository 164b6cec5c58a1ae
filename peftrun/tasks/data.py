"""Rows from a file, an installed package or the Hub; cleaned, balanced, split; prompts and completions rendered."""

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any

from peftrun import console
from peftrun.checks import package_dir
from peftrun.errors import DataError
from peftrun.schema import DataSpec, TaskSpec
from peftrun.tasks import mixture, translations

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
COLUMNS = ("chosen", "rejected", "desirable")  # fields of a task that name a column
NO_ROWS = "corresponds to no data"  # how datasets says it


@dataclass(frozen=True)
class Example:
    """One row as a talk: messages that are given, and the text to be learned. `choices`: what else it could be."""

    given: tuple[tuple[str, str], ...]  # (role, content)
    completion: str
    choices: tuple[str, ...] = ()
    adapter: str | None = None  # who is to answer it, where a column says so


def load_examples(task: TaskSpec, render: Callable[..., Any] | None = None) -> tuple[list[Any], list[Any]]:
    """Training and held-out examples, disjoint, in an order that `task.data.split_seed` alone decides.

    Args: render: makes something other than an Example of (where, row, task, choices).
    Raises: DataError: the file is empty or unreadable, a column is missing, a value is empty or no known label.
    """
    data, made = task.data, render or _example
    groups: dict[Any, str] = {}
    rows = _prepare(_load("task.data.path", data.path, task, made, groups), data)
    if data.mix is not None:
        rows = mixture.mixed({"task.data.path": (1.0, rows)} | _others(task, made), data.split_seed)
    if data.eval_path is not None:
        held_out = _load("task.data.eval_path", data.eval_path, task, made)[: data.eval_rows]
    else:
        _check_enough(len(rows), data.eval_rows)
        rows, held_out = (
            mixture.split_by_group(rows, groups, data.eval_rows)
            if data.group_column
            else (rows[data.eval_rows :], rows[: data.eval_rows])
        )
    return rows[: data.train_rows], held_out


def _others(task: TaskSpec, render: Callable[..., Any]) -> dict[str, tuple[float, list[Any]]]:
    """Weight and rows of each further source, rendered by its own templates where it has some."""
    found = {}
    for name, one in (task.data.mix or {}).items():
        own = replace(task, prompt=one.prompt or task.prompt, completion=one.completion or task.completion)
        found[name] = (one.weight, _prepare(_load(f"task.data.mix.{name}.path", one.path, own, render), task.data))
    return found


def _check_enough(rows: int, eval_rows: int) -> None:
    if rows <= eval_rows:
        advice = f"type task.data.eval_rows={max(1, rows // 5)}" if rows > 1 else "name a file with more data"
        raise DataError(f"task.data.eval_rows={eval_rows}: only {rows} rows are left after cleaning; {advice}")


def digest(examples: Iterable[Example]) -> str:
    """sha256 of what is learned, in order."""
    text = json.dumps([[e.given, e.completion] for e in examples], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _load(
    key: str, path: str, task: TaskSpec, render: Callable[..., Any], groups: dict[Any, str] | None = None
) -> list[Any]:
    """Every row rendered; `groups` is given the group of each."""
    rows = _read(task.data, f"{key}={path}", path)
    _check_columns(rows[0].keys(), task)
    choices = tuple(dict.fromkeys(task.data.labels.values())) if task.data.labels else ()
    made = [render(f"{key}={path}: row {number}", row, task, choices) for number, row in enumerate(rows, 1)]
    if groups is not None and task.data.group_column:
        groups |= {one: str(row[task.data.group_column]) for one, row in zip(made, rows, strict=True)}
    return made


def _read(data: DataSpec, key: str, path: str) -> list[dict[str, Any]]:
    from datasets import Dataset, load_dataset

    # What datasets logs as an error it also raises, and that is what the user is told.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    try:
        if data.source == "hub":
            rows = load_dataset(path, revision=data.revision, split=data.split, streaming=data.streaming)
        else:
            file = _file(data, key, path)
            if file.suffix == ".po":
                return translations.read(file) or _fail(_no_rows(key))
            options = {"delimiter": "\t"} if file.suffix == ".tsv" else {}
            rows = load_dataset(
                FORMATS[file.suffix.lower()], data_files=str(file), split="train", streaming=data.streaming, **options
            )
        if data.streaming:
            rows = Dataset.from_list(list(rows.take((data.train_rows or 0) + data.eval_rows)))
    except DataError:
        raise
    except KeyError as error:
        raise DataError(
            f"{key}: cannot tell its format; name a file that ends in {', '.join([*FORMATS, '.po'])}"
        ) from error
    except Exception as error:  # datasets raises errors of a dozen libraries; each means that the rows cannot be had
        raise DataError(_no_rows(key) if NO_ROWS in str(error) else _unreadable(key, error)) from error
    if len(rows) == 0:
        raise DataError(_no_rows(key))
    return rows.to_list()


def _fail(line: str) -> Any:
    raise DataError(line)


def _no_rows(key: str) -> str:
    return f"{key}: holds no rows; name a file with data"


def _file(data: DataSpec, key: str, path: str) -> Path:
    file = (package_dir(data.package or "") or Path()) / path if data.source == "package" else Path(path).expanduser()
    if file.stat().st_size == 0:
        raise DataError(f"{key}: the file is empty; name a file with data")
    return file


def _unreadable(key: str, error: BaseException) -> str:
    if isinstance(error, DataError):
        raise error
    deepest = error.__cause__ or error
    reason = " ".join(str(deepest).split())[:200] or type(deepest).__name__
    return f"{key}: cannot be read ({reason}); check the file, or the name and the connection"


def _example(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> Example:
    system = (("system", task.system),) if task.system else ()
    if task.messages is not None:
        talk = _talk(where, row[task.messages], task.messages)
        return Example((*system, *talk[:-1]), talk[-1][1], adapter=_adapter(where, row, task.data))
    values = row | ({"label": _label(where, row, task.data)} if task.data.label_column else {})
    prompt = fill(where, task.prompt, values)
    given = (*system, ("user", prompt)) if prompt is not None else ()
    fixed = tuple(fill(where, task.completion, {**values, "label": choice}) or "" for choice in choices)
    return Example(given, fill(where, task.completion, values) or "", fixed, _adapter(where, row, task.data))


def _adapter(where: str, row: dict[str, Any], data: DataSpec) -> str | None:
    if data.adapter_column is None:
        return None
    value = row[data.adapter_column]
    if not isinstance(value, str):
        raise DataError(f"{where}: column {data.adapter_column} must name an adapter; write its name, or base")
    return value


def _talk(where: str, messages: Any, column: str) -> list[tuple[str, str]]:
    try:
        talk = [(str(message["role"]), str(message["content"])) for message in messages]
    except (TypeError, KeyError) as error:
        raise DataError(f"{where}: column {column} must hold [{{role, content}}, …]; mend or remove the row") from error
    if not talk or talk[-1][0] != "assistant":
        raise DataError(
            f"{where}: the last message must be the assistant's, since that is what is learned; mend or remove the row"
        )
    return talk


def _label(where: str, row: dict[str, Any], data: DataSpec) -> str:
    assert data.label_column is not None
    value = str(row[data.label_column])
    if data.labels is None:
        return value
    if value not in data.labels:
        raise DataError(
            f"{where}: {data.label_column}={value} is not among task.data.labels ({', '.join(data.labels)})"
        )
    return data.labels[value]


def _fields(template: str | None) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(template or "") if field is not None]


def fill(where: str, template: str | None, values: dict[str, Any]) -> str | None:
    """The template with its columns put in; None if there is none. Only plain column names: no attribute or index reaches the values.

    Raises: DataError: a column is empty.
    """
    if template is None:
        return None
    parts = []
    for text, field, _, _ in Formatter().parse(template):
        parts.append(text)
        if field is not None:
            if values[field] is None or str(values[field]).strip() == "":
                raise DataError(f"{where}: column {field} is empty; fill it or remove the row")
            parts.append(str(values[field]))
    return "".join(parts)


def _check_columns(columns: Iterable[str], task: TaskSpec) -> None:
    present = set(columns)
    wanted = {"task.prompt": _fields(task.prompt), "task.completion": _fields(task.completion)}
    wanted |= {"task.words": [task.words] if task.words else [], "task.tags": [task.tags] if task.tags else []}
    wanted |= {f"task.{key}": [column] for key in COLUMNS if (column := getattr(task, key))}
    wanted["task.messages"] = [task.messages] if task.messages else []
    wanted["task.data.label_column"] = [task.data.label_column] if task.data.label_column else []
    wanted["task.data.group_column"] = [task.data.group_column] if task.data.group_column else []
    wanted["task.data.adapter_column"] = [task.data.adapter_column] if task.data.adapter_column else []
    labelled = {"label"} if task.data.label_column else set()
    problems = [
        f"{key}: the data has no column {name!r}; columns: {', '.join(sorted(present))}; {_advice(key, present)}"
        for key, names in wanted.items()
        for name in names
        if name not in present | (labelled if not key.startswith("task.data.") else set())
    ]
    if problems:
        raise DataError(*problems)


def _advice(key: str, columns: set[str]) -> str:
    example = min(columns, default="COLUMN")
    return f"type {key}='{{{example}}}'" if key in ("task.prompt", "task.completion") else f"type {key}={example}"


def _prepare(rows: list[Example], data: DataSpec) -> list[Example]:
    if data.deduplicate:
        unique = list(dict.fromkeys(rows))
        if len(unique) < len(rows):
            console.say(f"data: {len(rows) - len(unique)} repeated rows left out of {len(rows)}")
        rows = unique
    draw = random.Random(data.split_seed)
    rows = draw.sample(rows, len(rows))
    if data.balance:
        # Shuffled again: the rarest completion's rows come last to the balance, and the split takes the first rows.
        rows = _balanced(rows)
        draw.shuffle(rows)
    return rows


def _balanced(rows: list[Example]) -> list[Example]:
    """As many rows of each completion as of the rarest, the order kept."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.completion] = counts.get(row.completion, 0) + 1
    rarest, taken, kept = min(counts.values()), dict.fromkeys(counts, 0), []
    for row in rows:
        if taken[row.completion] < rarest:
            taken[row.completion] += 1
            kept.append(row)
    return kept
