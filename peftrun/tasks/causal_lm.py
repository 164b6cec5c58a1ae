"""Kind `causal_lm`: a language model learns completions. Rows as tokens, and what is measured on held-out rows."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from peftrun import console
from peftrun.adapter import mixing, nature
from peftrun.device import of_inputs
from peftrun.errors import DataError
from peftrun.schema import TaskSpec
from peftrun.tasks.data import Example, digest, load_examples

IGNORED = -100  # label of tokens that carry no loss


@dataclass(frozen=True)
class Row:
    """One example as token ids. `candidates[answer]` is the true completion, the others are what else it could be."""

    prompt: list[int]
    completion: list[int]
    candidates: list[list[int]]
    answer: int
    adapter: str | None = None  # who is to answer; None: the active one

    @property
    def ids(self) -> list[int]:
        """Prompt and completion."""
        return self.prompt + self.completion


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
        """`input_ids` and `labels` of each training row; no loss on the prompt."""
        return [
            {"input_ids": row.prompt + row.completion, "labels": [IGNORED] * len(row.prompt) + row.completion}
            for row in self.train
        ]

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"train_rows": len(self.train), "held_out_rows": len(self.held_out), "digest": self.digest}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows as tokens. Rows longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or no row fits.
    """
    train, held_out = load_examples(task)
    return Rows(
        _fitting(train, task, tokenizer, "training"),
        _fitting(held_out, task, tokenizer, "held-out"),
        digest([*train, *held_out]),
    )


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> dict[str, float]:
    """Means over held-out rows, see `metrics`."""
    return metrics(scored(model, tokenizer, rows, batch_size))


@torch.inference_mode()
def scored(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> list[Score]:
    """Each row measured, by the adapter that it names. Greedy decoding yields a completion exactly if its every token is
    the first choice given those before it, so one teacher-forced pass tells."""
    was_training = model.training
    model.eval()
    found = []
    for batch in _batches(rows, batch_size):
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


def prompt_ids(tokenizer: Any, given: tuple[tuple[str, str], ...]) -> list[int]:
    """Token ids of a talk up to the point where the answer begins, by the model's own chat template if it has one."""
    if not tokenizer.chat_template:
        return list(tokenizer("\n".join(content for _, content in given) + "\n")["input_ids"]) if given else []
    talk = [{"role": role, "content": content} for role, content in given]
    return list(tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"])


def _encode(example: Example, tokenizer: Any) -> Row:
    prompt = prompt_ids(tokenizer, example.given) if example.given else []
    completion = completion_ids(tokenizer, example.given, prompt, example.completion)
    if not prompt:  # plain text: the first token is given, the rest is learned
        return Row(completion[:1], completion[1:], [completion[1:]], 0, example.adapter)
    choices = [completion_ids(tokenizer, example.given, prompt, choice) for choice in example.choices]
    answer = example.choices.index(example.completion) if choices else 0
    candidates = [_to_end(ids, tokenizer.eos_token_id) for ids in choices or [completion]]
    return Row(prompt, completion, candidates, answer, example.adapter)


def completion_ids(tokenizer: Any, given: tuple[tuple[str, str], ...], prompt: list[int], text: str) -> list[int]:
    """Token ids of an answer to `given`, whose own are `prompt`, up to the end of the turn."""
    if tokenizer.chat_template and given:
        talk = [{"role": role, "content": content} for role, content in (*given, ("assistant", text))]
        whole = list(tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"])
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
    return [*tokenizer(text, add_special_tokens=not prompt)["input_ids"], tokenizer.eos_token_id]


def _to_end(ids: list[int], end: int) -> list[int]:
    """`ids` up to and with the first end token: what comes after is never generated."""
    return ids[: ids.index(end) + 1] if end in ids else ids


def _fitting(examples: list[Example], task: TaskSpec, tokenizer: Any, which: str) -> list[Row]:
    rows = [_encode(example, tokenizer) for example in examples]
    kept = [row for row in rows if row.completion and len(row.prompt) + len(row.completion) <= task.max_length]
    if not kept:
        shortest = min(len(row.prompt) + len(row.completion) for row in rows)
        raise DataError(
            f"task.max_length={task.max_length}: every one of the {len(rows)} {which} rows is longer "
            f"(the shortest has {shortest} tokens); type task.max_length={2 ** max(shortest - 1, 1).bit_length()}"
        )
    if len(kept) < len(rows):
        console.say(
            f"data: {len(rows) - len(kept)} of {len(rows)} {which} rows are longer than {task.max_length} tokens, left out"
        )
    return kept


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
