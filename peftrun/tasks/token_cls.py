"""Kind `token_cls`: each word has a tag, such as the names of entities; tags as in CoNLL (O, B-PERSON, I-PERSON, …)."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DataCollatorForTokenClassification

from peftrun.errors import DataError
from peftrun.schema import TaskSpec
from peftrun.tasks.classes import Row, Rows, answers, f1, limit, say_cut
from peftrun.tasks.data import load_examples
from peftrun.tasks.limits import IGNORED
from peftrun.tasks.templates import text_of

OUTSIDE = "O"
ENTITY = re.compile(r"(.+?) - ([A-Z]+)(?:, |$)")


@dataclass(frozen=True)
class Tagged:
    """One row: words and their tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str = field(default="", compare=False)


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows as tokens, cut at `task.max_length` or where the model ends; of a word's tokens the first carries its tag.

    Raises: DataError: see `data.load_examples`; or a row's words and tags do not fit together, or a tag is unknown.
    """
    train, held_out = load_examples(task, _tagged)
    text = json.dumps([[one.words, one.tags] for one in (*train, *held_out)], ensure_ascii=False)
    first, second = ([_encode(one, task, tokenizer) for one in part] for part in (train, held_out))
    return say_cut(Rows(first, second, hashlib.sha256(text.encode()).hexdigest()), limit(task, tokenizer))


def collator(tokenizer: Any) -> Any:
    """What makes a batch of training rows."""
    return DataCollatorForTokenClassification(tokenizer)


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over the words of held-out rows.

    Returns:
        loss: mean nats a word. token_accuracy: share of words with the right tag.
        precision, recall, f1: of whole entities; one counts if its first word, its last and its type are right
            (Tjong Kim Sang & De Meulder 2003, CoNLL).
    """
    return detailed(model, tokenizer, rows, batch_size, task)[0]


def detailed(
    model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec
) -> tuple[dict[str, float], dict[str, Any]]:
    """What `evaluate` gives; and `entities`: of each type how many are `true`, were `found`, and are `right` of those."""
    names = [model.config.id2label[number] for number in range(len(model.config.id2label))]
    total, words, right = 0.0, 0, 0
    counts = {kind: Counter[str]() for name in names if (kind := name.partition("-")[2])}
    for row, logits in answers(model, tokenizer, rows, batch_size):
        labels = torch.tensor(row.labels)
        judged = labels != IGNORED
        scores, labels = logits[judged], labels[judged]
        total += torch.nn.functional.cross_entropy(scores, labels, reduction="sum").item()
        words, right = words + len(labels), right + int((scores.argmax(-1) == labels).sum())
        answered = entities([names[i] for i in scores.argmax(-1).tolist()])
        given = entities([names[i] for i in labels.tolist()])
        for which, some in (("true", given), ("found", answered), ("right", answered & given)):
            for _, _, kind in some:
                counts.setdefault(kind, Counter())[which] += 1
    true, found, hits = (sum(one[which] for one in counts.values()) for which in ("true", "found", "right"))
    figures = {
        "loss": total / max(words, 1),
        "token_accuracy": right / max(words, 1),
        "precision": hits / found if found else 0.0,
        "recall": hits / true if true else 0.0,
        "f1": f1(hits, found, true),
    }
    each = {kind: {which: one[which] for which in ("true", "found", "right")} for kind, one in counts.items()}
    return figures, {"entities": each}


def entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """(first word, word after the last, type) of each entity; an I- that continues nothing begins one."""
    spans: set[tuple[int, int, str]] = set()
    start, kind = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, _, own = tag.partition("-")
        if kind and (mark != "I" or own != kind):
            spans.add((start, place, kind))
            kind = ""
        if tag != OUTSIDE and not kind:
            start, kind = place, own
    return spans


def _tagged(where: str, row: dict[str, Any], task: TaskSpec, _: tuple[str, ...]) -> Tagged:
    assert task.words is not None and task.tags is not None
    words, tags = [text_of(where, task.words, word) for word in _words(row[task.words])], row[task.tags]
    if isinstance(tags, str):
        tags = _from_list(words, tags)
    if not words or not all(words) or not isinstance(tags, list) or len(words) != len(tags):
        raise DataError(
            f"{where}: columns {task.words} and {task.tags} must hold a word and its tag each, as many of one as of the other; "
            "mend or remove the row"
        )
    tags = [text_of(where, task.tags, tag) for tag in tags]
    unknown = sorted(set(tags) - set(task.label_names or ()))
    if unknown:
        names = ", ".join(task.label_names or ())
        raise DataError(f"{where}: tag {unknown[0]} is not among task.label_names ({names}); add it, or mend the row")
    return Tagged(tuple(words), tuple(tags), where)


def _words(value: Any) -> list[Any]:
    """A list of words as it is; a text parted at blanks; of a talk its last message."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[-1].get("content")
    return value.split() if isinstance(value, str) else value if isinstance(value, list) else []


def _from_list(words: list[str], listed: str) -> list[str]:
    """Tags from a text that lists entities in their order: `[Wellesley - LOCATION, Jane Roe - PERSON]`.

    An entity that is not found among the words after the one before it is looked for from the start, and passed over
    if it is nowhere.
    """
    tags, place = [OUTSIDE] * len(words), 0
    inner = listed.strip()
    for name, kind in ENTITY.findall(inner[1:-1]) if inner.startswith("[") else []:
        parts = name.split()
        start = _find(words, tags, parts, place)
        start = _find(words, tags, parts, 0) if start is None else start
        if start is not None:
            place = start + len(parts)
            tags[start:place] = [f"B-{kind}", *[f"I-{kind}"] * (len(parts) - 1)]
    return tags


def _find(words: list[str], tags: list[str], parts: list[str], start: int) -> int | None:
    """Where `parts` stand among words that no entity has taken yet."""
    size = len(parts)
    places = range(start, len(words) - size + 1)
    free = [OUTSIDE] * size
    return next((i for i in places if words[i : i + size] == parts and tags[i : i + size] == free), None)


def _encode(one: Tagged, task: TaskSpec, tokenizer: Any) -> Row:
    names = task.label_names or []
    split = tokenizer(list(one.words), is_split_into_words=True, truncation=True, max_length=limit(task, tokenizer))
    labels, before = [], None
    for word in split.word_ids():
        labels.append(IGNORED if word is None or word == before else names.index(one.tags[word]))
        before = word
    return Row(list(split["input_ids"]), labels, one.where)
