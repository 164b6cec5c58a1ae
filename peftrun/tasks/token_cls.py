"""Kind `token_cls`: each word has a tag, such as the names of entities; tags as in CoNLL (O, B-PERSON, I-PERSON, …)."""

from collections import Counter
from typing import Any

import torch
from transformers import DataCollatorForTokenClassification

from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.classification import f1_score, predict_logits
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.tasks.rows.classes import Row
from peftrun.tasks.rows.token_cls import OUTSIDE, load_rows

__all__ = ["Row", "collator", "detailed", "evaluate", "extract_entities", "load_rows"]


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
    for row, logits in predict_logits(model, tokenizer, rows, batch_size):
        labels = torch.tensor(row.labels)
        judged = labels != IGNORE_INDEX
        scores, labels = logits[judged], labels[judged]
        total += torch.nn.functional.cross_entropy(scores, labels, reduction="sum").item()
        words, right = words + len(labels), right + int((scores.argmax(-1) == labels).sum())
        answered = extract_entities([names[i] for i in scores.argmax(-1).tolist()])
        given = extract_entities([names[i] for i in labels.tolist()])
        for which, some in (("true", given), ("found", answered), ("right", answered & given)):
            for _, _, kind in some:
                counts.setdefault(kind, Counter())[which] += 1
    true, found, hits = (sum(one[which] for one in counts.values()) for which in ("true", "found", "right"))
    figures = {
        "loss": total / max(words, 1),
        "token_accuracy": right / max(words, 1),
        "precision": hits / found if found else 0.0,
        "recall": hits / true if true else 0.0,
        "f1": f1_score(hits, found, true),
    }
    each = {kind: {which: one[which] for which in ("true", "found", "right")} for kind, one in counts.items()}
    return figures, {"entities": each}


def extract_entities(tags: list[str]) -> set[tuple[int, int, str]]:
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
