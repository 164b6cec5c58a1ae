"""How much of the rows a training learns, in words."""

import math

from peftrun.config.schema.run import RunSpec
from peftrun.planning import throughput

MIN_EPOCHS = 0.5  # epochs, below which most rows are never learned


def describe_coverage(spec: RunSpec, rows: int, steps: int | None = None) -> str | None:
    """`60 steps × 4 rows = 240 rows (0.26 epochs of 918)`; None where a step does not take whole rows, or takes answers to them."""
    if spec.trainer.packing or spec.task.kind == "prompt_only":
        return None
    steps = throughput.count_optimizer_steps(spec.trainer, rows, _count_processes(spec)) if steps is None else steps
    return throughput.format_rows_seen(steps, _count_step_rows(spec), rows) if steps else None


def describe_unseen_rows(spec: RunSpec, rows: int) -> str | None:
    """What to type where most rows are never learned."""
    steps = throughput.count_optimizer_steps(spec.trainer, rows, _count_processes(spec)) or 0
    if describe_coverage(spec, rows) is None or steps * _count_step_rows(spec) >= MIN_EPOCHS * rows:
        return None
    whole = math.ceil(rows / _count_step_rows(spec))
    return (
        f"{rows - steps * _count_step_rows(spec):,} of {rows:,} training rows are never learned; "
        f"type trainer=epochs for passes over all of them, or trainer.max_steps={whole} for one"
    )


def _count_step_rows(spec: RunSpec) -> int:
    return throughput.count_step_rows(spec.trainer, _count_processes(spec))


def _count_processes(spec: RunSpec) -> int:
    return spec.device.processes * spec.device.machines
