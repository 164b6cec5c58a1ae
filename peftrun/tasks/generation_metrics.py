"""What a model writes in answer to prompts, and how near it is to what it should have written."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from peftrun.config.schema.run import TaskSpec
from peftrun.models.device import get_input_device
from peftrun.tasks.end_tokens import find_end_tokens
from peftrun.tasks.length_checks import count_free_positions


def generate_greedy(model: Any, tokenizer: Any, prompts: list[list[int]], batch_size: int, longest: int) -> list[str]:
    """The greedy answer to each prompt, of at most so many tokens, in the order of the prompts."""
    was_training = model.training
    model.eval()
    found: dict[int, str] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # less padding to compute
    for part in batch_prompts(model, [prompts[i] for i in by_length], batch_size, longest):
        places = [by_length[i] for i in part]
        found |= zip(places, generate_batch(model, tokenizer, [prompts[i] for i in places], longest), strict=True)
    model.train(was_training)
    return [found[i] for i in range(len(prompts))]


def batch_prompts(model: Any, prompts: list[list[int]], size: int, longest: int) -> Iterator[list[int]]:
    """Places of prompts to be answered together, in their order. One whose answer has less room than the longest is by itself, so that no other
    is cut with it."""
    part: list[int] = []
    for place, prompt in enumerate(prompts):
        tight = _limit_new_tokens(model, prompt, longest) < longest
        if part and (tight or len(part) == size):
            yield part
            part = []
        if tight:
            yield [place]
        else:
            part.append(place)
    if part:
        yield part


@torch.inference_mode()
def generate_batch(model: Any, tokenizer: Any, prompts: list[list[int]], longest: int, **sampling: Any) -> list[str]:
    """The answers to prompts of one batch, up to an end token, of at most so many tokens and no more than the model has positions for.

    Args: sampling: as `generate` takes it; nothing: greedy.
    """
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(get_input_device(model))
    out = model.generate(
        input_ids=padded["input_ids"], attention_mask=padded["attention_mask"],
        max_new_tokens=min(_limit_new_tokens(model, one, longest) for one in prompts),
        pad_token_id=tokenizer.pad_token_id, eos_token_id=find_end_tokens(model, tokenizer) or None, **(sampling or {"do_sample": False}),
    )  # fmt: skip
    # A decoder of its own does not repeat what was read.
    begin = 0 if model.config.is_encoder_decoder else padded["input_ids"].shape[1]
    return [str(one) for one in tokenizer.batch_decode(out[:, begin:], skip_special_tokens=True)]


def _limit_new_tokens(model: Any, prompt: list[int], longest: int) -> int:
    left = count_free_positions(model, prompt)
    return longest if left is None else min(longest, left)


def compute_generation_metrics(
    model: Any, tokenizer: Any, pairs: list[tuple[list[int], list[int]]], batch_size: int, task: TaskSpec
) -> dict[str, float]:
    """What `task.metrics` asks for of greedy answers to (prompt, what should be answered); nothing where it asks for nothing."""
    if not task.metrics:
        return {}
    said = generate_greedy(model, tokenizer, [prompt for prompt, _ in pairs], batch_size, task.max_new_tokens)
    texts = tokenizer.batch_decode([true for _, true in pairs], skip_special_tokens=True)
    return compute_text_metrics(list(task.metrics), [one.strip() for one in said], [one.strip() for one in texts])


def compute_text_metrics(names: list[str], said: list[str], true: list[str]) -> dict[str, float]:
    """Each measure over all answers, from 0 to 100: `bleu` and `chrf` (sacrebleu's defaults), `rouge_1`, `rouge_2`, `rouge_l` (mean
    F of rouge-score, stemmed)."""
    return {name: _TEXT_METRICS[name](said, true) for name in names}


def _compute_bleu(said: list[str], true: list[str]) -> float:
    import sacrebleu

    return float(sacrebleu.corpus_bleu(said, [true]).score)


def _compute_chrf(said: list[str], true: list[str]) -> float:
    import sacrebleu

    return float(sacrebleu.corpus_chrf(said, [true]).score)


def _make_rouge(kind: str) -> Callable[[list[str], list[str]], float]:
    def measure(said: list[str], true: list[str]) -> float:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind], use_stemmer=True)
        each = [scorer.score(reference, answer)[kind].fmeasure for answer, reference in zip(said, true, strict=True)]
        return 100 * sum(each) / len(each)

    return measure


_TEXT_METRICS: dict[str, Callable[[list[str], list[str]], float]] = {
    "bleu": _compute_bleu,
    "chrf": _compute_chrf,
    "rouge_1": _make_rouge("rouge1"),
    "rouge_2": _make_rouge("rouge2"),
    "rouge_l": _make_rouge("rougeL"),
}
