"""Tokenized rows in readable form: the text, which parts of it are trained on, and the ids and labels that training gets."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts.function_files import get_name
from peftrun.artifacts.run_layout import ROWS
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.io import atomic_files
from peftrun.tasks.chat_template import find_spans
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.tasks.row_counts import split_row_location
from peftrun.tasks.rows import Rows
from peftrun.tasks.tokenization import count_common_prefix

LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # str.splitlines splits there, JSON does not
NUM_REPORT_ROWS = 3  # rows that a report shows
TRAINING, VALIDATION, HELD_OUT = "training", "validation", "held-out"
OUTSIDE = "O"  # CoNLL's tag of a word outside of entities
WORD_BEGINS = "▁"  # SentencePiece's space


@dataclass(frozen=True)
class RowText:
    """One text of a row.

    Attributes:
        labels: one per token, IGNORE_INDEX for tokens without loss.
        name: of a second text of the row; empty for the first.
        tagged: the labels are tags, one per word.
    """

    ids: list[int]
    labels: list[int]
    name: str = ""
    tagged: bool = False

    @property
    def learned(self) -> int:
        """Number of tokens with loss."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


def split_rows(rows: Rows, task: TaskSpec) -> dict[str, list[Any]]:
    """Split → its rows; validation rows are the first training rows. Empty splits are left out."""
    count = task.data.num_validation_rows or 0
    splits = {TRAINING: rows.train[count:], VALIDATION: rows.train[:count], HELD_OUT: rows.held_out}
    return {name: split for name, split in splits.items() if split}


def write_first_rows(rows: Rows, task: TaskSpec, tokenizer: Any, folder: Path) -> None:
    """Writes the first training rows into the run folder, for the report."""
    first = split_rows(rows, task)[TRAINING][:NUM_REPORT_ROWS]
    write_rows([describe_row(row, TRAINING, task, tokenizer) for row in first], folder)


def write_rows(rows: list[dict[str, Any]], folder: Path) -> None:
    """Writes rows, as `describe_row` returns them, to `rows.jsonl`."""
    lines = (json.dumps(row, ensure_ascii=False).translate(LINE_ENDS) for row in rows)
    atomic_files.write_text(folder / ROWS, "".join(f"{line}\n" for line in lines))


def list_row_texts(row: Any, kind: str) -> list[RowText]:
    """The texts of a row, with their labels."""
    return _TEXT_BUILDERS[kind](row)


def describe_row(row: Any, split: str, task: TaskSpec, tokenizer: Any, tokens: bool = False) -> dict[str, Any]:
    """A row for `rows.jsonl`: its source, its text, what is trained on, and `input_ids` and `labels` as training gets them.

    Args: tokens: adds each token as text.
    """
    first, *others = list_row_texts(row, task.type)
    described = _describe_text(first, tokenizer, tokens)
    described |= {text.name: _describe_text(text, tokenizer, tokens) for text in others}
    if "labels" in row.as_trained:
        described["labels"] = row.as_trained["labels"]
    if task.type == "seq2seq":
        described["learned"] = described["target"]["learned"]
    facts = _describe_labels(row, task, described)
    if task.type == "seq_cls":
        described["learned"] = [facts["label"]]
    return {"source": strip_source_key(row.where), "split": split, **described, **({"facts": facts} if facts else {})}


def strip_source_key(where: str) -> str:
    """The file (or dataset) and the row in it, without the config key that names the file."""
    return where.partition("=")[2] or where


def names_of(sources: Iterable[str]) -> dict[str, str]:
    """Source → its name without the config key; with the key if two keys name the same file (training and evaluation)."""
    short = {source: strip_source_key(source) for source in sources}
    counts = Counter(short.values())
    return {source: name if counts[name] == 1 else source for source, name in short.items()}


def parse_row_number(row: Any) -> int:
    """A row's number in its source."""
    return split_row_location(row.where)[1]


def _build_pair(row: Any) -> list[RowText]:
    chosen, rejected = (_build_answer(row.prompt, answer, row.rewarded) for answer in (row.chosen, row.rejected))
    return [chosen, RowText(rejected.ids, rejected.labels, "rejected")]


def _build_answer(prompt: list[int], answer: list[int], rewarded: bool = False) -> RowText:
    # A reward model is trained on the score of the whole text, so no token carries loss.
    labels = [IGNORE_INDEX] * len(answer) if rewarded else answer
    return RowText(prompt + answer, [IGNORE_INDEX] * len(prompt) + labels)


def _build_unlabeled(row: Any) -> list[RowText]:
    return [RowText(row.ids, [IGNORE_INDEX] * len(row.ids))]


_TEXT_BUILDERS: dict[str, Callable[[Any], list[RowText]]] = {
    "causal_lm": lambda row: [RowText(row.ids, row.labels)],
    "token_cls": lambda row: [RowText(row.ids, row.labels, tagged=True)],
    "seq_cls": _build_unlabeled,
    "prompt_only": _build_unlabeled,
    "seq2seq": lambda row: [*_build_unlabeled(row), RowText(row.target, row.target, "target")],
    "preference": _build_pair,
    "unpaired_preference": lambda row: [_build_answer(row.prompt, row.completion)],
}


def _describe_labels(row: Any, task: TaskSpec, described: dict[str, Any]) -> dict[str, str]:
    """What a row holds besides its texts: label, tags, whether the answer is wanted, true answer."""
    names = task.label_names or []
    if task.type == "seq_cls":
        return {"label": names[row.labels]}
    if task.type == "token_cls":
        tags = [names[label] for label in row.labels if label != IGNORE_INDEX]
        words = [described["text"][begin:].split(maxsplit=1)[0] for begin, _ in described["spans"]]
        entities = [f"{word} {tag}" for word, tag in zip(words, tags, strict=True) if tag != OUTSIDE]
        return {"tags": ", ".join(entities) or f"{OUTSIDE} throughout"}
    if task.type == "unpaired_preference":
        return {"this answer is": "wanted" if row.desirable else "not wanted"}
    if isinstance(task.objective, GrpoObjective):
        return {
            "rewarded by": ", ".join(map(get_name, task.objective.rewards)),
            **({"true answer": row.answer} if row.answer else {}),
        }
    return {}


def _describe_text(row_text: RowText, tokenizer: Any, tokens: bool) -> dict[str, Any]:
    ids, labels = row_text.ids, row_text.labels
    text = _decode_ids(ids, tokenizer)
    if row_text.tagged:  # one span per word, without the space that its first token may begin with
        words = [(place, place + 1) for place, label in enumerate(labels) if label != IGNORE_INDEX]
        spans = _convert_to_char_spans(words, ids, text, tokenizer)
        spans = [(end - len(text[begin:end].lstrip()), end) for begin, end in spans]
    else:
        learned = find_spans([label != IGNORE_INDEX for label in labels])
        spans = _convert_to_char_spans(learned, ids, text, tokenizer)
    return {
        "text": text,
        "learned": [text[begin:end] for begin, end in spans],
        "input_ids": ids,
        "labels": labels,
        "spans": spans,  # in characters of `text`
        **({"tokens": [decode_token(token, tokenizer) for token in ids]} if tokens else {}),
    }


def decode_token(token: int, tokenizer: Any) -> str:
    """A token as text, or as the vocabulary spells it if it is only part of a character."""
    spelled = str(tokenizer.convert_ids_to_tokens(token))
    if spelled.startswith(WORD_BEGINS):
        return spelled.replace(WORD_BEGINS, " ")
    text = _decode_ids([token], tokenizer)
    return spelled if not text or "\ufffd" in text else text  # U+FFFD: bytes that are not UTF-8 on their own


def _decode_ids(ids: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _convert_to_char_spans(
    spans: list[tuple[int, int]], ids: list[int], text: str, tokenizer: Any
) -> list[tuple[int, int]]:
    """Token spans as spans of characters. A character that spans several tokens belongs to the last of them."""

    def char_offset(count: int) -> int:
        before = _decode_ids(ids[:count], tokenizer)  # may end with U+FFFD in place of an incomplete character
        return len(before) if text.startswith(before) else count_common_prefix(before, text)

    return [(char_offset(begin), len(text) if end == len(ids) else char_offset(end)) for begin, end in spans]
