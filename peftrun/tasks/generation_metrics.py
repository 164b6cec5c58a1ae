"""Greedy answers of a model to prompts, and text metrics on them (BLEU, chrF, ROUGE, the user's own)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from peftrun.artifacts import function_files
from peftrun.checks.metric_names import LANGUAGE_METRICS
from peftrun.config.schema.run import TaskSpec
from peftrun.errors import ConfigError
from peftrun.models.device import get_input_device
from peftrun.tasks import own_functions
from peftrun.tasks.end_tokens import cut_at_end_token, find_end_tokens
from peftrun.tasks.length_checks import count_free_positions

T = TypeVar("T")


def generate_greedy(model: Any, tokenizer: Any, prompts: list[list[int]], batch_size: int, longest: int) -> list[str]:
    """The greedy answer to each prompt, of at most `longest` tokens, in the order of the prompts."""
    return _answer_in_batches(
        model, prompts, batch_size, longest, lambda batch: generate_batch(model, tokenizer, batch, longest)
    )


def generate_greedy_ids(
    model: Any, tokenizer: Any, prompts: list[list[int]], batch_size: int, longest: int
) -> list[list[int]]:
    """The same as token ids, up to and with the end token, of a model without an encoder."""
    ends = find_end_tokens(model, tokenizer)
    return _answer_in_batches(
        model,
        prompts,
        batch_size,
        longest,
        lambda batch: [cut_at_end_token(ids, ends) for ids in _generate_ids(model, tokenizer, batch, longest).tolist()],
    )


def _answer_in_batches(
    model: Any, prompts: list[list[int]], batch_size: int, longest: int, answer: Callable[[list[list[int]]], list[T]]
) -> list[T]:
    """`answer` of batches of prompts, in the order of the prompts."""
    was_training = model.training
    model.eval()
    answers: dict[int, T] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths together: less padding
    for batch in batch_prompts(model, [prompts[i] for i in by_length], batch_size, longest):
        indices = [by_length[i] for i in batch]
        answers |= zip(indices, answer([prompts[i] for i in indices]), strict=True)
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


def generate_batch(model: Any, tokenizer: Any, prompts: list[list[int]], longest: int, **sampling: Any) -> list[str]:
    """The answers to one batch of prompts, up to an end token, of at most `longest` tokens and within the positions of the model.

    Args: sampling: arguments of `generate`; greedy without any.
    """
    output = _generate_ids(model, tokenizer, prompts, longest, **sampling)
    return [str(text) for text in tokenizer.batch_decode(output, skip_special_tokens=True)]


@torch.inference_mode()
def _generate_ids(model: Any, tokenizer: Any, prompts: list[list[int]], longest: int, **sampling: Any) -> torch.Tensor:
    # (B, T), padded on the left so that new tokens follow each prompt directly.
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(get_input_device(model))
    output: torch.Tensor = model.generate(
        input_ids=padded["input_ids"], attention_mask=padded["attention_mask"],
        max_new_tokens=min(_limit_new_tokens(model, prompt, longest) for prompt in prompts),
        pad_token_id=tokenizer.pad_token_id, eos_token_id=find_end_tokens(model, tokenizer) or None, **(sampling or {"do_sample": False}),
    )  # fmt: skip
    # (B, T + new tokens), or (B, new tokens) of an encoder-decoder model: its decoder does not repeat the prompt.
    begin = 0 if model.config.is_encoder_decoder else padded["input_ids"].shape[1]
    return output[:, begin:]


def _limit_new_tokens(model: Any, prompt: list[int], longest: int) -> int:
    left = count_free_positions(model, prompt)
    return longest if left is None else min(longest, left)


def compute_generation_metrics(
    model: Any, tokenizer: Any, rows: Sequence[Any], batch_size: int, task: TaskSpec
) -> dict[str, float]:
    """`task.metrics` of greedy answers to rows of task type causal_lm or seq2seq; empty without any.

    Raises: ConfigError: see `compute_text_metrics`.
    """
    if not task.metrics:
        return {}
    pairs = [(row.ids, row.target) if hasattr(row, "target") else (row.prompt, row.completion) for row in rows]
    answers = generate_greedy(model, tokenizer, [prompt for prompt, _ in pairs], batch_size, task.max_new_tokens)
    references = tokenizer.batch_decode([reference for _, reference in pairs], skip_special_tokens=True)
    answers, references = ([text.strip() for text in texts] for texts in (answers, references))
    return compute_text_metrics(list(task.metrics), answers, references, rows)


def compute_text_metrics(
    names: list[str], answers: list[str], references: list[str], rows: Sequence[Any] = ()
) -> dict[str, float]:
    """Each metric over all answers, from 0 to 100: `bleu` and `chrf` (sacrebleu's defaults), `rouge_1`, `rouge_2`, `rouge_l` (mean
    F of rouge-score, stemmed); those of the user as they are.

    Raises: ConfigError: see `own_functions.compute_metric`; or two metrics have one name.
    """
    metrics: dict[str, float] = {}
    for name in names:  # the packages are optional: extra `metrics`
        if function_files.is_reference(name):
            own = own_functions.compute_metric(name, answers, references, rows)
            for taken in own.keys() & {*metrics, *LANGUAGE_METRICS}:
                raise ConfigError(
                    f"task.metrics={name}: returned {taken}, which another metric is called; rename it there"
                )
            metrics |= own
            continue
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
