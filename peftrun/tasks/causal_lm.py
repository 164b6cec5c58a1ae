"""Kind `causal_lm`: a language model learns completions. Rows as tokens, and what is measured on held-out rows."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from peftrun import console
from peftrun.adapter import mixing, nature
from peftrun.device import of_inputs
from peftrun.errors import DataError
from peftrun.schema import TaskSpec
from peftrun.tasks import ends, written
from peftrun.tasks.data import Example, digest, load_examples
from peftrun.tasks.encoding import Encoder
from peftrun.tasks.limits import IGNORED
from peftrun.tasks.messages import ASSISTANT, named, says
from peftrun.tasks.talks import kept


@dataclass(frozen=True)
class Row:
    """One example as token ids. `candidates[answer]` is the true completion, the others are what else it could be."""

    prompt: list[int]
    completion: list[int]
    candidates: list[list[int]]
    answer: int
    adapter: str | None = None  # who is to answer; None: the active one
    learned: list[tuple[int, int]] | None = None  # spans of `ids` that carry loss; None: the completion
    where: str = field(default="", compare=False)

    @property
    def ids(self) -> list[int]:
        """Prompt and completion."""
        return self.prompt + self.completion

    @property
    def labels(self) -> list[int]:
        """`ids` where they are learned, `IGNORED` elsewhere."""
        found = [IGNORED] * len(self.ids)
        for begin, end in self.learned or [(len(self.prompt), len(self.ids))]:
            found[begin:end] = self.ids[begin:end]
        return found


@dataclass(frozen=True)
class Score:
    """What was measured on one row: nats and tokens of the true completion, whether it is the greedy one, and the likeliest."""

    row: Row
    nats: float
    tokens: int
    exact: bool
    chosen: bool


@dataclass(frozen=True)
class Rows:
    """Training rows, held-out rows, and a digest of both."""

    train: list[Row]
    held_out: list[Row]
    digest: str

    def for_training(self) -> list[dict[str, list[int]]]:
        """`input_ids` and `labels` of each training row; no loss but on what is learned."""
        return [{"input_ids": row.ids, "labels": row.labels} for row in self.train]

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"train_rows": len(self.train), "held_out_rows": len(self.held_out), "digest": self.digest}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows as tokens. Rows longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or no row fits.
    """
    train, held_out = load_examples(task)
    encoder = Encoder(tokenizer, task)
    return Rows(
        _fitting(train, task, encoder, "training"),
        _fitting(held_out, task, encoder, "held-out"),
        digest([*train, *held_out]),
    )


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Means over held-out rows, see `metrics`; and how near written answers are, see `written.nearness`."""
    found = metrics(scored(model, tokenizer, rows, batch_size))
    pairs = [(row.prompt, row.completion) for row in rows]
    return found | written.measured(model, tokenizer, pairs, batch_size, task)


@torch.inference_mode()
def scored(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> list[Score]:
    """Each row measured, by the adapter that it names. Greedy decoding yields a completion exactly if its every token is
    the first choice given those before it, so one teacher-forced pass tells."""
    was_training, last = model.training, ends.end_tokens(model, tokenizer)
    model.eval()
    found = []
    ending = [replace(row, candidates=[ends.until(ids, last) for ids in row.candidates]) for row in rows]
    for batch in _batches(ending, batch_size):
        with mixing.answering(model, [row.adapter for row in batch]):
            each = (_score_whole if nature.reads_whole(model) else _score)(model, batch, tokenizer.pad_token_id)
        for row, scores in zip(batch, each, strict=True):
            likeliest = min(range(len(scores)), key=lambda k: scores[k][0])
            found.append(Score(row, *scores[row.answer], likeliest == row.answer))
    model.train(was_training)
    return found


def metrics(scores: list[Score]) -> dict[str, float]:
    """Means over rows.

    Returns:
        loss: nats a completion token. perplexity: its exponential.
        exact_match: share of rows whose greedy answer is the true completion, up to its end token.
        choice_accuracy: share of rows whose true completion is the likeliest of its choices; where there are choices.
    """
    loss = sum(one.nats for one in scores) / sum(one.tokens for one in scores)
    exact = sum(one.exact for one in scores) / len(scores)
    found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "exact_match": exact}
    chosen = sum(one.chosen for one in scores) / len(scores)
    return found | ({"choice_accuracy": chosen} if len(scores[0].row.candidates) > 1 else {})


def _encode(example: Example, task: TaskSpec, encoder: Encoder, *, learned: bool) -> list[Row]:
    """One row; of a plain text as many as `task.max_length` asks for; of a conversation held out for all its answers, one for each. None where
    the row says that what would be learned of it is not."""
    with named(example.where):
        encoder.check(example.where, example.conversation, "" if example.conversation else example.completion)
        if not example.conversation:
            return _pieces(example, task, encoder)
        if learned:
            return _to_learn(example, task, encoder)
        answers = example.conversation.answers if task.loss_on == "assistant" else example.conversation.answers[-1:]
        wanted = [place for place in answers if place not in example.conversation.unlearned]
        return [_row(example.up_to(place), encoder) for place in wanted]


def _to_learn(example: Example, task: TaskSpec, encoder: Encoder) -> list[Row]:
    row = _row(example, encoder)
    whole = example.conversation
    if task.loss_on == "completion" and len(whole.messages) - 1 in whole.unlearned:
        return []
    spans = encoder.learned(whole, row.ids, len(row.prompt), task.loss_on)
    plain = spans == [(len(row.prompt), len(row.ids))]
    return [replace(row, learned=None if plain else spans)] if spans else []


def _row(example: Example, encoder: Encoder) -> Row:
    *_, last = example.conversation.messages
    answers = [says(ASSISTANT, choice) for choice in example.choices] or [last]
    answer = example.choices.index(example.completion) if example.choices else 0
    prompt, candidates = encoder.answered(example.given, answers)
    return Row(prompt, candidates[answer], candidates, answer, example.adapter, where=example.where)


def _pieces(example: Example, task: TaskSpec, encoder: Encoder) -> list[Row]:
    """A plain text, cut where it is longer than a row may be; of each piece the first token is given, the rest is learned."""
    ids = encoder.text(example.completion)
    parts = [ids[start : start + task.max_length] for start in range(0, len(ids), task.max_length)]
    return [
        Row(part[:1], part[1:], [part[1:]], 0, example.adapter, where=example.where) for part in parts if len(part) > 1
    ]


def _fitting(examples: list[Example], task: TaskSpec, encoder: Encoder, which: str) -> list[Row]:
    made = [(one, _encode(one, task, encoder, learned=which == "training")) for one in examples]
    encoder.report(which)
    rows = [row for _, found in made for row in found]
    silent = [one.where for one, found in made if not found and one.conversation]
    if silent:
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        console.say(
            f"data: nothing is learned of {len(silent)} {which} rows, whose answers have weight 0 or train false: "
            f"{', '.join(silent[:3])}{more}; left out"
        )
    if not rows:
        raise DataError(_nothing(examples, which, bool(silent)))
    if len(rows) + len(silent) > len(examples):
        console.say(f"data: {len(examples)} {which} texts make {len(rows)} rows")
    return kept(rows, lambda row: len(row.ids), task, which)


def _nothing(examples: list[Example], which: str, silent: bool) -> str:
    if silent:
        return f"task.messages: every answer of the {len(examples)} {which} rows has weight 0 or train false; give one of them weight 1"
    return f"task.completion: each of the {len(examples)} {which} texts is a single token; name longer ones"


def _batches(rows: list[Row], size: int) -> Iterator[list[Row]]:
    # Rows of like length together: less padding to compute.
    ordered = sorted(rows, key=lambda row: len(row.prompt))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def _score(model: Any, rows: list[Row], pad: int) -> list[list[tuple[float, int, bool]]]:
    """For each row and candidate: its negative log-likelihood in nats, its tokens, whether greedy decoding yields it.

    Prompts are computed once, padded on the left; each candidate continues from a copy of their cache.
    """
    width = max(len(row.prompt) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in rows], device=of_inputs(model))
    mask = torch.tensor(
        [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=of_inputs(model)
    )
    start = model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1)
    count = len(rows[0].candidates)
    scores = [_score_candidates(model, [row.candidates[k] for row in rows], pad, mask, start) for k in range(count)]
    return [[scores[k][i] for k in range(count)] for i in range(len(rows))]


def _score_candidates(
    model: Any, candidates: list[list[int]], pad: int, mask: torch.Tensor, start: Any
) -> list[tuple[float, int, bool]]:
    lengths = [len(ids) for ids in candidates]
    width = max(lengths)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids in candidates], device=of_inputs(model))
    logits = start.logits[:, -1:]
    if width > 1:
        longer = torch.cat([mask, torch.ones_like(ids[:, 1:])], dim=1)
        more = model(
            input_ids=ids[:, :-1],
            attention_mask=longer,
            position_ids=_positions(longer)[:, -(width - 1) :],
            past_key_values=copy.deepcopy(start.past_key_values),
            use_cache=True,
        )
        logits = torch.cat([logits, more.logits], dim=1)
    return [_judged(logits[i, :n], ids[i, :n]) for i, n in enumerate(lengths)]


def _judged(logits: torch.Tensor, ids: torch.Tensor) -> tuple[float, int, bool]:
    logs = logits.float().log_softmax(-1)
    nats = -logs.gather(-1, ids[:, None]).sum()
    return nats.item(), len(ids), bool((logs.argmax(-1) == ids).all())


def _score_whole(model: Any, rows: list[Row], pad: int) -> list[list[tuple[float, int, bool]]]:
    """The same for adapters that must see a row in one piece: prompt and candidate in one pass, each candidate of its own."""
    scores = []
    for k in range(len(rows[0].candidates)):
        both = [row.prompt + row.candidates[k] for row in rows]
        width = max(map(len, both))
        ids = torch.tensor([one + [pad] * (width - len(one)) for one in both], device=of_inputs(model))
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in both], device=of_inputs(model))
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -width:]
        spans = [(len(row.prompt), len(one)) for row, one in zip(rows, both, strict=True)]
        scores.append([_judged(logits[i, a - 1 : b - 1], ids[i, a:b]) for i, (a, b) in enumerate(spans)])
    return [list(each) for each in zip(*scores, strict=True)]


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)
