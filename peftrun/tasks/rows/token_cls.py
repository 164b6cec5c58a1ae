"""Rows of task type `token_cls`: words, and a tag for each."""

import re
from dataclasses import dataclass, field
from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.data.templates import format_column_value
from peftrun.errors import DataError
from peftrun.tasks.examples import digest_rows, load_examples
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.tasks.messages import ROW_ADVICE
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.rows.classes import Row, not_among, resolve_max_length, warn_truncated
from peftrun.tasks.token_ids import batch_items

OUTSIDE = "O"  # CoNLL's tag of a word outside of entities
ENTITY = re.compile(r"(.+?) - ([A-Z]+)(?:, |$)")  # one item of `[Wellesley - LOCATION, Jane Roe - PERSON]`


@dataclass(frozen=True)
class TaggedExample:
    """One row: words and their tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str = field(default="", compare=False)


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows, truncated to `task.max_length` tokens or the model's limit; the first token of a word carries its tag.

    Raises: DataError: see `load_examples`; or a row has not one tag per word, or a tag is not in `task.label_names`.
    """
    tally, limit = Tally(), resolve_max_length(task, tokenizer)
    train, held_out = load_examples(task, _render_tagged, tally)
    digest = digest_rows([[example.words, example.tags] for example in (*train, *held_out)])
    names, splits = task.label_names or [], (list[Row](), list[Row]())
    for examples, rows in zip((train, held_out), splits, strict=True):
        for batch in batch_items(examples):
            words = [list(example.words) for example in batch]
            encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=limit)
            for index, example in enumerate(batch):
                word_ids = encoded.word_ids(index)  # per token, None for special tokens
                # Only the first token of a word carries its tag.
                labels = [
                    IGNORE_INDEX if word is None or word == before else names.index(example.tags[word])
                    for before, word in zip([None, *word_ids], word_ids, strict=False)
                ]
                rows.append(Row(list(encoded["input_ids"][index]), labels, example.where))
    return warn_truncated(Rows(*splits, digest, tally), limit)


def _render_tagged(where: str, row: dict[str, Any], task: TaskSpec, _: tuple[str, ...]) -> TaggedExample:
    assert task.tokens_column is not None and task.tags_column is not None
    value, tags = row[task.tokens_column], row[task.tags_column]
    if isinstance(value, list) and value and isinstance(value[0], dict):  # a conversation: its last message
        value = value[-1].get("content")
    if isinstance(value, str):
        value = value.split()
    words = [
        format_column_value(where, task.tokens_column, word) for word in (value if isinstance(value, list) else [])
    ]
    if isinstance(tags, str):
        tags = _parse_entity_list(words, tags)
    if not words or not all(words) or not isinstance(tags, list) or len(words) != len(tags):
        raise DataError(
            f"{where}: columns {task.tokens_column} and {task.tags_column} must hold lists of equal length, one tag per word; {ROW_ADVICE}"
        )
    tags = [format_column_value(where, task.tags_column, tag) for tag in tags]
    unknown = sorted(set(tags) - set(task.label_names or ()))
    if unknown:
        raise DataError(f"{where}: tag {unknown[0]} {not_among(task.label_names or [], unknown[0])}")
    return TaggedExample(tuple(words), tuple(tags), where)


def _parse_entity_list(words: list[str], text: str) -> list[str]:
    """Tags from a text that lists the entities in order: `[Wellesley - LOCATION, Jane Roe - PERSON]`.

    An entity is searched after the one before it, then from the start; it is skipped if it does not occur.
    """
    tags, position = [OUTSIDE] * len(words), 0
    text = text.strip()
    for name, entity_type in ENTITY.findall(text[1:-1]) if text.startswith("[") else []:
        parts = name.split()
        start = _find_entity(words, tags, parts, position)
        start = _find_entity(words, tags, parts, 0) if start is None else start
        if start is not None:
            position = start + len(parts)
            tags[start:position] = [f"B-{entity_type}", *[f"I-{entity_type}"] * (len(parts) - 1)]
    return tags


def _find_entity(words: list[str], tags: list[str], parts: list[str], start: int) -> int | None:
    """Index of the first occurrence of `parts` among words without a tag, from `start` on."""
    size = len(parts)
    free = [OUTSIDE] * size
    candidates = range(start, len(words) - size + 1)
    return next((i for i in candidates if words[i : i + size] == parts and tags[i : i + size] == free), None)
