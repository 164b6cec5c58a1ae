"""Task type `token_cls`: one tag per word, such as named entities in CoNLL's scheme (O, B-PERSON, I-PERSON, …)."""

from collections import Counter
from typing import Any

import torch
from transformers import DataCollatorForTokenClassification

from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.classification import f1_score, predict_logits
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.tasks.rows.classes import Row
from peftrun.tasks.rows.token_cls import OUTSIDE, load_rows

__all__ = ["Row", "collator", "evaluate", "evaluate_in_detail", "extract_entities", "load_rows"]


def collator(tokenizer: Any) -> Any:
    """Data collator for training."""
    return DataCollatorForTokenClassification(tokenizer)


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Metrics over the words of evaluation rows.

    Returns:
        loss: mean nats per word. token_accuracy: share of words with the right tag.
        precision, recall, f1: of whole entities; an entity is correct if its first word, last word and type are
            (Tjong Kim Sang & De Meulder 2003, CoNLL).
    """
    return evaluate_in_detail(model, tokenizer, rows, batch_size, task)[0]


def evaluate_in_detail(
    model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of `evaluate`, and `entities`: per type the number of `true` entities, of `found` ones, and of `right` ones."""
    names = [model.config.id2label[index] for index in range(len(model.config.id2label))]
    total, words, correct = 0.0, 0, 0
    counts = {entity_type: Counter[str]() for name in names if (entity_type := name.partition("-")[2])}
    for row, logits in predict_logits(model, tokenizer, rows, batch_size):  # logits: (tokens, labels)
        labels = torch.tensor(row.labels)  # (tokens,)
        scored = labels != IGNORE_INDEX  # the first token of each word
        scores, labels = logits[scored], labels[scored]  # (words, labels), (words,)
        predicted = scores.argmax(-1)
        total += torch.nn.functional.cross_entropy(scores, labels, reduction="sum").item()
        words, correct = words + len(labels), correct + int((predicted == labels).sum())
        found = extract_entities([names[i] for i in predicted.tolist()])
        true = extract_entities([names[i] for i in labels.tolist()])
        for key, entities in (("true", true), ("found", found), ("right", found & true)):
            for _, _, entity_type in entities:
                counts.setdefault(entity_type, Counter())[key] += 1
    num_true, num_found, hits = (sum(count[key] for count in counts.values()) for key in ("true", "found", "right"))
    metrics = {
        "loss": total / max(words, 1),
        "token_accuracy": correct / max(words, 1),
        "precision": hits / num_found if num_found else 0.0,
        "recall": hits / num_true if num_true else 0.0,
        "f1": f1_score(hits, num_found, num_true),
    }
    per_type = {name: {key: count[key] for key in ("true", "found", "right")} for name, count in counts.items()}
    return metrics, {"entities": per_type}


def extract_entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """(first word, word after the last, type) of each entity; an I- tag without an entity before it begins one."""
    spans: set[tuple[int, int, str]] = set()
    start, current = 0, ""
    for index, tag in enumerate([*tags, OUTSIDE]):  # the last OUTSIDE ends an entity at the end
        mark, _, entity_type = tag.partition("-")
        if current and (mark != "I" or entity_type != current):
            spans.add((start, index, current))
            current = ""
        if tag != OUTSIDE and not current:
            start, current = index, entity_type
    return spans
