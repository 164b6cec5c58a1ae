"""A run that is resumed by another number of processes: what may differ then, given both configs as key → value."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

Values = Mapping[str, Any]

COUNTS = ("device.num_processes", "device.num_machines")
SPREAD = ("device.strategy", *COUNTS, "device.machine_rank", "device.main_process_ip", "device.main_process_port")
BATCH = ("trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps")


def list_changeable_keys(now: Values, then: Values) -> tuple[str, ...]:
    """Keys that may differ from the run to resume: how many processes there are, and what each has of a batch of the same size.

    None if the number is the same, or if the checkpoints of the two have different forms.
    """
    return (*SPREAD, *BATCH) if _differs(now, then) and not _has_own_form(now, then) else ()


def find_other_batch(now: Values, then: Values) -> Iterator[str]:
    """A line if a step would have another number of rows."""
    rows, processes = _count_rows(then), _count_processes(now)
    if list_changeable_keys(now, then) and _count_rows(now) != rows:
        size, accumulated = now[BATCH[0]], now[BATCH[1]]
        fits = rows % (processes * accumulated) == 0
        advice = (
            f"{BATCH[0]}={rows // (processes * accumulated)}"
            if fits
            else f"two values whose product is {rows / processes:g}"
        )
        yield f"{BATCH[0]}={size}: a step would have {_count_rows(now)} rows, and the run has {rows}; type {advice}"


def describe_change(now: Values, then: Values) -> Iterator[str]:
    """A line on what the other number of processes changes."""
    if _differs(now, then):
        yield (
            f"{_count_processes(now)} instead of {_count_processes(then)} processes: rows and batches stay the same; dropout and sampling draw "
            "other numbers than without the interruption"
        )


def _differs(now: Values, then: Values) -> bool:
    return any(now.get(key) != then.get(key) for key in ("device.strategy", *COUNTS))


def _has_own_form(now: Values, then: Values) -> bool:
    """Whether only the same strategy can read the checkpoints: DeepSpeed's are its own, a whole model's are sharded by FSDP."""
    strategies = {now.get("device.strategy"), then.get("device.strategy")}
    is_whole_model = now.get("lora.method") == "none"
    return "deepspeed" in strategies or (is_whole_model and "fsdp" in strategies and len(strategies) > 1)


def _count_processes(values: Values) -> int:
    return math.prod(int(values.get(key) or 1) for key in COUNTS)


def _count_rows(values: Values) -> int:
    """Rows of an optimizer step."""
    return math.prod(int(values.get(key) or 1) for key in BATCH) * _count_processes(values)
