"""A row of tokens as people read it: the text, which parts of it are learned, and the numbers that training gets."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import ROWS
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.io import atomic_files
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.tasks.row_counts import split_row_location
from peftrun.tasks.rows import Rows
from peftrun.tasks.tokenization import count_common_prefix

LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # to some readers, and none to JSON
NUM_REPORT_ROWS = 3  # rows that a report shows
TRAINING, VALIDATION, HELD_OUT = "training", "validation", "held-out"
OUTSIDE = "O"  # the tag of what is no entity
WORD_BEGINS = "▁"  # SentencePiece's blank


@dataclass(frozen=True)
class RowText:
    """One text of a row.

    Attributes:
        labels: of each token what is learned, or IGNORED.
        name: of a second text beside the first.
        tagged: what is learned are tags, one a word.
    """

    ids: list[int]
    labels: list[int]
    name: str = ""
    tagged: bool = False

    @property
    def learned(self) -> int:
        """How many of its tokens are learned."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


def split_rows(rows: Rows, task: TaskSpec) -> dict[str, list[Any]]:
    """The rows that are learned, those to validate on while training, and those held out."""
    apart = task.data.validation_rows or 0
    found = {TRAINING: rows.train[apart:], VALIDATION: rows.train[:apart], HELD_OUT: rows.held_out}
    return {name: some for name, some in found.items() if some}


def write_first_rows(rows: Rows, task: TaskSpec, tokenizer: Any, folder: Path) -> None:
    """The first rows of a training in its run folder, for its report."""
    first = split_rows(rows, task)[TRAINING][:NUM_REPORT_ROWS]
    write_rows([describe_row(row, TRAINING, task, tokenizer) for row in first], folder)


def write_rows(rows: list[dict[str, Any]], folder: Path) -> None:
    """Described rows as `rows.jsonl`."""
    lines = (json.dumps(row, ensure_ascii=False).translate(LINE_ENDS) for row in rows)
    atomic_files.write_text(folder / ROWS, "".join(f"{line}\n" for line in lines))


def list_row_texts(row: Any, kind: str) -> list[RowText]:
    """The texts of a row, with what is learned of each."""
    return _TEXT_BUILDERS[kind](row)


def describe_row(row: Any, split: str, task: TaskSpec, tokenizer: Any, tokens: bool = False) -> dict[str, Any]:
    """A row for `rows.jsonl`: where it comes from, its text, what is learned, and `input_ids` and `labels` as training gets them.

    Args: tokens: with each token as text too.
    """
    first, *others = list_row_texts(row, task.kind)
    found = _describe_text(first, tokenizer, tokens) | {
        part.name: _describe_text(part, tokenizer, tokens) for part in others
    }
    if "labels" in row.as_trained:
        found["labels"] = row.as_trained["labels"]
    if task.kind == "seq2seq":
        found["learned"] = found["target"]["learned"]
    facts = _describe_labels(row, task, found)
    if task.kind == "seq_cls":
        found["learned"] = [facts["label"]]
    return {"source": strip_source_key(row.where), "split": split, **found, **({"facts": facts} if facts else {})}


def strip_source_key(where: str) -> str:
    """The file (or data set) and the row in it, without the key that names the file."""
    return where.partition("=")[2] or where


def names_of(sources: Iterable[str]) -> dict[str, str]:
    """Source → its name without the key; with it where two keys name the same file, to train on and to measure on."""
    places = {source: strip_source_key(source) for source in sources}
    times = Counter(places.values())
    return {source: place if times[place] == 1 else source for source, place in places.items()}


def parse_row_number(row: Any) -> int:
    """A row's number in its source."""
    return split_row_location(row.where)[1]


def _build_pair(row: Any) -> list[RowText]:
    """Of a reward model the score of each whole text is learned, and no token."""
    first, second = (_build_answer(row.prompt, answer, row.rewarded) for answer in (row.chosen, row.rejected))
    return [first, RowText(second.ids, second.labels, "rejected")]


def _build_answer(prompt: list[int], answer: list[int], judged: bool = False) -> RowText:
    return RowText(prompt + answer, [IGNORE_INDEX] * len(prompt) + ([IGNORE_INDEX] * len(answer) if judged else answer))


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


def _describe_labels(row: Any, task: TaskSpec, found: dict[str, Any]) -> dict[str, str]:
    """What a row says beside its texts."""
    names = task.label_names or []
    if task.kind == "seq_cls":
        return {"label": names[row.labels]}
    if task.kind == "token_cls":
        tags = [names[label] for label in row.labels if label != IGNORE_INDEX]
        words = [found["text"][begin:].split(maxsplit=1)[0] for begin, _ in found["spans"]]
        told = [f"{word} {tag}" for word, tag in zip(words, tags, strict=True) if tag != OUTSIDE]
        return {"tags": ", ".join(told) or f"{OUTSIDE} throughout"}
    if task.kind == "unpaired_preference":
        return {"this answer is": "wanted" if row.desirable else "not wanted"}
    if isinstance(task.objective, GrpoObjective):
        return {"rewarded by": ", ".join(task.objective.rewards), **({"true answer": row.answer} if row.answer else {})}
    return {}


def _describe_text(part: RowText, tokenizer: Any, tokens: bool) -> dict[str, Any]:
    text = _decode_ids(part.ids, tokenizer)
    spans = _convert_to_char_spans(_find_learned_spans(part), part.ids, text, tokenizer)
    spans = [_strip_span(span, text) for span in spans] if part.tagged else spans
    shown = {"tokens": [decode_token(one, tokenizer) for one in part.ids]} if tokens else {}
    return {
        "text": text,
        "learned": [text[begin:end] for begin, end in spans],
        "input_ids": part.ids,
        "labels": part.labels,
        "spans": spans,  # of the text's characters that are learned
        **shown,
    }


def decode_token(token: int, tokenizer: Any) -> str:
    """A token as text; as the vocabulary spells it where it is no whole character."""
    spelled = str(tokenizer.convert_ids_to_tokens(token))
    if spelled.startswith(WORD_BEGINS):
        return spelled.replace(WORD_BEGINS, " ")
    text = _decode_ids([token], tokenizer)
    return spelled if not text or "\ufffd" in text else text


def _decode_ids(ids: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _find_learned_spans(part: RowText) -> list[tuple[int, int]]:
    """(first, one after the last) of each run of tokens that are learned; of tags each by itself."""
    if part.tagged:
        return [(place, place + 1) for place, label in enumerate(part.labels) if label != IGNORE_INDEX]
    learned = [False, *(label != IGNORE_INDEX for label in part.labels), False]
    edges = [place for place, (one, other) in enumerate(pairwise(learned)) if one != other]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _convert_to_char_spans(
    spans: list[tuple[int, int]], ids: list[int], text: str, tokenizer: Any
) -> list[tuple[int, int]]:
    """The same in characters. A character that is made of several tokens belongs to the last of them."""

    def place(count: int) -> int:
        before = _decode_ids(ids[:count], tokenizer)
        return len(before) if text.startswith(before) else count_common_prefix(before, text)

    return [(place(begin), len(text) if end == len(ids) else place(end)) for begin, end in spans]


def _strip_span(span: tuple[int, int], text: str) -> tuple[int, int]:
    """A span without the blanks before it."""
    begin, end = span
    return end - len(text[begin:end].lstrip()), end
