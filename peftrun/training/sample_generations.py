"""Answers that a model generates to a few evaluation rows before and after training. Random state is left as it was."""

from dataclasses import dataclass
from typing import Any

from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.system.random_state import keep_random_state
from peftrun.tasks import generation_metrics

MAX_PROMPT_TOKENS = 32  # tokens of a plain text that are the prompt; the rest is the expected answer
MIN_NEW_TOKENS = 24  # tokens that may be generated even if the expected answers are shorter


@dataclass(frozen=True)
class SampleRow:
    """An evaluation row: its prompt (token ids), what is expected (token ids or text; None: anything), and where it comes from."""

    prompt: list[int]
    expected: list[int] | str | None
    where: str


def choose_rows(rows: list[Any], count: int) -> list[SampleRow]:
    """So many of the rows, of any task type, evenly spaced."""
    stride, samples = max(1, len(rows) // count) if count else 1, []
    for row in rows[::stride][:count]:
        if hasattr(row, "target"):
            prompt, expected = row.ids, row.target
        elif len(row.prompt) == 1 and hasattr(row, "completion"):  # a plain text: its start is the prompt
            cut = min(MAX_PROMPT_TOKENS, len(row.ids) // 2) or 1
            prompt, expected = row.ids[:cut], row.ids[cut:]
        elif getattr(row, "desirable", True) is False:
            prompt, expected = row.prompt, None
        else:  # of a preference the chosen answer is expected
            names = [name for name in ("completion", "chosen", "answer") if hasattr(row, name)]
            prompt, expected = row.prompt, (getattr(row, names[0]) if names else None) or None
        samples.append(SampleRow(prompt, expected, row.where))
    return samples


def compute_max_new_tokens(samples: list[SampleRow], task: TaskSpec) -> int:
    """How many tokens may be generated: twice the longest expected answer, no more than the task allows."""
    if isinstance(task.objective, GrpoObjective):
        return task.objective.max_completion_length
    lengths = [len(sample.expected) for sample in samples if isinstance(sample.expected, list)]
    return min(task.max_new_tokens, max(MIN_NEW_TOKENS, 2 * max(lengths, default=0)))


def generate_samples(
    model: Any, tokenizer: Any, samples: list[SampleRow], batch_size: int, max_new_tokens: int
) -> list[str]:
    """The greedy answer to each sample row, stripped."""
    prompts = [sample.prompt for sample in samples]
    with keep_random_state():
        texts = generation_metrics.generate_greedy(model, tokenizer, prompts, batch_size, max_new_tokens)
    return [text.strip() for text in texts]


def format_samples(
    samples: list[SampleRow], tokenizer: Any, generations: dict[str, list[str]], max_new_tokens: int
) -> dict[str, Any]:
    """For the record: each row's prompt, its expected answer, and the generated ones under "before" and "after"."""
    rows = []
    for index, sample in enumerate(samples):
        expected = sample.expected
        if isinstance(expected, list):
            expected = str(tokenizer.decode(expected, skip_special_tokens=True)).strip()
        rows.append(
            {
                "where": sample.where,
                "prompt": tokenizer.decode(sample.prompt, skip_special_tokens=True).strip(),
                "expected": expected,
                **{when: texts[index] for when, texts in generations.items()},
            }
        )
    return {"max_new_tokens": max_new_tokens, "rows": rows}
