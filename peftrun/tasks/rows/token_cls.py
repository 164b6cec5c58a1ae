"""Rows of kind `token_cls`: words, and a tag for each."""

import re
from dataclasses import dataclass, field
from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.data.templates import format_column_value
from peftrun.errors import DataError
from peftrun.tasks.examples import digest_rows, load_examples
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.rows.classes import Row, not_among, resolve_max_length, warn_truncated
from peftrun.tasks.token_ids import batch_items

OUTSIDE = "O"
ENTITY = re.compile(r"(.+?) - ([A-Z]+)(?:, |$)")


@dataclass(frozen=True)
class TaggedExample:
    """One row: words and their tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str = field(default="", compare=False)


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows as tokens, cut at `task.max_length` or where the model ends; of a word's tokens the first carries its tag.

    Raises: DataError: see `data.load_examples`; or a row's words and tags do not fit together, or a tag is unknown.
    """
    tally = Tally()
    train, held_out = load_examples(task, _render_tagged, tally)
    said = [[one.words, one.tags] for one in (*train, *held_out)]
    first, second = (_encode_examples(part, task, tokenizer) for part in (train, held_out))
    return warn_truncated(Rows(first, second, digest_rows(said), tally), resolve_max_length(task, tokenizer))


def _render_tagged(where: str, row: dict[str, Any], task: TaskSpec, _: tuple[str, ...]) -> TaggedExample:
    assert task.words is not None and task.tags is not None
    words, tags = (
        [format_column_value(where, task.words, word) for word in _split_words(row[task.words])],
        row[task.tags],
    )
    if isinstance(tags, str):
        tags = _parse_entity_list(words, tags)
    if not words or not all(words) or not isinstance(tags, list) or len(words) != len(tags):
        raise DataError(
            f"{where}: columns {task.words} and {task.tags} must hold a word and its tag each, as many of one as of the other; "
            "mend or remove the row"
        )
    tags = [format_column_value(where, task.tags, tag) for tag in tags]
    unknown = sorted(set(tags) - set(task.label_names or ()))
    if unknown:
        raise DataError(f"{where}: tag {unknown[0]} {not_among(task.label_names or [], unknown[0])}")
    return TaggedExample(tuple(words), tuple(tags), where)


def _split_words(value: Any) -> list[Any]:
    """A list of words as it is; a text parted at blanks; of a talk its last message."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[-1].get("content")
    return value.split() if isinstance(value, str) else value if isinstance(value, list) else []


def _parse_entity_list(words: list[str], listed: str) -> list[str]:
    """Tags from a text that lists entities in their order: `[Wellesley - LOCATION, Jane Roe - PERSON]`.

    An entity that is not found among the words after the one before it is looked for from the start, and passed over
    if it is nowhere.
    """
    tags, place = [OUTSIDE] * len(words), 0
    inner = listed.strip()
    for name, kind in ENTITY.findall(inner[1:-1]) if inner.startswith("[") else []:
        parts = name.split()
        start = _find_entity(words, tags, parts, place)
        start = _find_entity(words, tags, parts, 0) if start is None else start
        if start is not None:
            place = start + len(parts)
            tags[start:place] = [f"B-{kind}", *[f"I-{kind}"] * (len(parts) - 1)]
    return tags


def _find_entity(words: list[str], tags: list[str], parts: list[str], start: int) -> int | None:
    """Where `parts` stand among words that no entity has taken yet."""
    size = len(parts)
    places = range(start, len(words) - size + 1)
    free = [OUTSIDE] * size
    return next((i for i in places if words[i : i + size] == parts and tags[i : i + size] == free), None)


def _encode_examples(examples: list[TaggedExample], task: TaskSpec, tokenizer: Any) -> list[Row]:
    most, rows = resolve_max_length(task, tokenizer), []
    for part in batch_items(examples):
        words = [list(one.words) for one in part]
        split = tokenizer(words, is_split_into_words=True, truncation=True, max_length=most)
        rows += [
            Row(list(split["input_ids"][place]), _align_labels(one, split.word_ids(place), task), one.where)
            for place, one in enumerate(part)
        ]
    return rows


def _align_labels(one: TaggedExample, words: list[int | None], task: TaskSpec) -> list[int]:
    """The number of its word's tag at the first token of each word."""
    names = task.label_names or []
    return [
        IGNORE_INDEX if word is None or word == before else names.index(one.tags[word])
        for before, word in zip([None, *words], words, strict=False)
    ]
