"""Greedy answers of a model to prompts, and text metrics on them (BLEU, chrF, ROUGE)."""

from collections.abc import Iterator
from typing import Any

import torch

from peftrun.config.schema.run import TaskSpec
from peftrun.models.device import get_input_device
from peftrun.tasks.end_tokens import find_end_tokens
from peftrun.tasks.length_checks import count_free_positions


def generate_greedy(model: Any, tokenizer: Any, prompts: list[list[int]], batch_size: int, longest: int) -> list[str]:
    """The greedy answer to each prompt, of at most `longest` tokens, in the order of the prompts."""
    was_training = model.training
    model.eval()
    answers: dict[int, str] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths together: less padding
    for batch in batch_prompts(model, [prompts[i] for i in by_length], batch_size, longest):
        indices = [by_length[i] for i in batch]
        answers |= zip(indices, generate_batch(model, tokenizer, [prompts[i] for i in indices], longest), strict=True)
    model.train(was_training)
    return [answers[i] for i in range(len(prompts))]


def batch_prompts(model: Any, prompts: list[list[int]], size: int, longest: int) -> Iterator[list[int]]:
    """Yields the indices of each batch, in order.

    A prompt that leaves fewer than `longest` free positions is a batch of its own, so that its limit does not cut other answers.
    """
    batch: list[int] = []
    for index, prompt in enumerate(prompts):
        limited = _limit_new_tokens(model, prompt, longest) < longest
        if batch and (limited or len(batch) == size):
            yield batch
            batch = []
        if limited:
            yield [index]
        else:
            batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def generate_batch(model: Any, tokenizer: Any, prompts: list[list[int]], longest: int, **sampling: Any) -> list[str]:
    """The answers to one batch of prompts, up to an end token, of at most `longest` tokens and within the positions of the model.

    Args: sampling: arguments of `generate`; greedy without any.
    """
    # (B, T), padded on the left so that new tokens follow each prompt directly.
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(get_input_device(model))
    output = model.generate(
        input_ids=padded["input_ids"], attention_mask=padded["attention_mask"],
        max_new_tokens=min(_limit_new_tokens(model, prompt, longest) for prompt in prompts),
        pad_token_id=tokenizer.pad_token_id, eos_token_id=find_end_tokens(model, tokenizer) or None, **(sampling or {"do_sample": False}),
    )  # fmt: skip
    # (B, T + new tokens), or (B, new tokens) of an encoder-decoder model: its decoder does not repeat the prompt.
    begin = 0 if model.config.is_encoder_decoder else padded["input_ids"].shape[1]
    return [str(text) for text in tokenizer.batch_decode(output[:, begin:], skip_special_tokens=True)]


def _limit_new_tokens(model: Any, prompt: list[int], longest: int) -> int:
    left = count_free_positions(model, prompt)
    return longest if left is None else min(longest, left)


def compute_generation_metrics(
    model: Any, tokenizer: Any, pairs: list[tuple[list[int], list[int]]], batch_size: int, task: TaskSpec
) -> dict[str, float]:
    """`task.metrics` of greedy answers to pairs of (prompt, reference); empty without any."""
    if not task.metrics:
        return {}
    answers = generate_greedy(model, tokenizer, [prompt for prompt, _ in pairs], batch_size, task.max_new_tokens)
    references = tokenizer.batch_decode([reference for _, reference in pairs], skip_special_tokens=True)
    return compute_text_metrics(
        list(task.metrics), [text.strip() for text in answers], [text.strip() for text in references]
    )


def compute_text_metrics(names: list[str], answers: list[str], references: list[str]) -> dict[str, float]:
    """Each metric over all answers, from 0 to 100: `bleu` and `chrf` (sacrebleu's defaults), `rouge_1`, `rouge_2`, `rouge_l` (mean
    F of rouge-score, stemmed)."""
    metrics: dict[str, float] = {}
    for name in names:  # the packages are optional: extra `metrics`
        if name in ("bleu", "chrf"):
            import sacrebleu

            score = sacrebleu.corpus_bleu if name == "bleu" else sacrebleu.corpus_chrf
            metrics[name] = float(score(answers, [references]).score)
            continue
        from rouge_score.rouge_scorer import RougeScorer

        variant = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}[name]
        scorer = RougeScorer([variant], use_stemmer=True)
        # rouge-score takes the reference first.
        scores = [scorer.score(true, text)[variant].fmeasure for text, true in zip(answers, references, strict=True)]
        metrics[name] = 100 * sum(scores) / len(scores)
    return metrics
