"""How much of the rows a training learns, in words."""

import math

from peftrun.config.schema.run import RunSpec
from peftrun.planning import throughput

FEW = 0.5  # epochs, below which most rows are never learned


def told(spec: RunSpec, rows: int, steps: int | None = None) -> str | None:
    """`60 steps × 4 rows = 240 rows (0.26 epochs of 918)`; None where a step does not take whole rows, or takes answers to them."""
    if spec.trainer.packing or spec.task.kind == "prompt_only":
        return None
    steps = throughput.steps(spec.trainer, rows, _processes(spec)) if steps is None else steps
    return throughput.seen(steps, _size(spec), rows) if steps else None


def unseen(spec: RunSpec, rows: int) -> str | None:
    """What to type where most rows are never learned."""
    steps = throughput.steps(spec.trainer, rows, _processes(spec)) or 0
    if told(spec, rows) is None or steps * _size(spec) >= FEW * rows:
        return None
    whole = math.ceil(rows / _size(spec))
    return (
        f"{rows - steps * _size(spec):,} of {rows:,} training rows are never learned; "
        f"type trainer=epochs for passes over all of them, or trainer.max_steps={whole} for one"
    )


def _size(spec: RunSpec) -> int:
    return throughput.step_rows(spec.trainer, _processes(spec))


def _processes(spec: RunSpec) -> int:
    return spec.device.processes * spec.device.machines
