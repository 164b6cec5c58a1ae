"""How many of the training rows a run will see, as text."""

import math

from peftrun.config.schema.run import RunSpec
from peftrun.planning import throughput

MIN_EPOCHS = 0.5  # below so many epochs, most rows are never trained on, which is reported


def describe_coverage(spec: RunSpec, rows: int, steps: int | None = None) -> str | None:
    """`60 steps × 4 rows = 240 rows (0.26 epochs of 918)`; None where a step is not made of whole rows (packing), or is
    made of several answers to a row (GRPO)."""
    if spec.trainer.packing or spec.task.type == "prompt_only":
        return None
    steps = throughput.count_optimizer_steps(spec.trainer, rows, _count_processes(spec)) if steps is None else steps
    return throughput.format_rows_seen(steps, _count_step_rows(spec), rows) if steps else None


def describe_unseen_rows(spec: RunSpec, rows: int) -> str | None:
    """What to type if most rows are never trained on; None if they are."""
    steps = throughput.count_optimizer_steps(spec.trainer, rows, _count_processes(spec)) or 0
    step_rows = _count_step_rows(spec)
    if describe_coverage(spec, rows) is None or steps * step_rows >= MIN_EPOCHS * rows:
        return None
    return (
        f"{rows - steps * step_rows:,} of {rows:,} training rows are never learned; "
        f"type trainer=epochs for passes over all of them, or trainer.max_steps={math.ceil(rows / step_rows)} for one"
    )


def _count_step_rows(spec: RunSpec) -> int:
    """Rows of an optimizer step, over all processes."""
    return throughput.count_step_rows(spec.trainer, _count_processes(spec))


def _count_processes(spec: RunSpec) -> int:
    return spec.device.num_processes * spec.device.num_machines
