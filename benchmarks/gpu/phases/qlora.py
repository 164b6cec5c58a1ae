"""QLoRA: the large base model in NF4, 2 rows of 2048 tokens a step, gradient checkpointing; peftrun against PEFT's documented way."""

from typing import Any

from benchmarks.gpu import training_phase
from benchmarks.gpu.contest import Rows
from benchmarks.gpu.context import TINY, Case

SECONDS = 400
CONTESTANTS = ("peftrun_nf4", "trainer_nf4")


def list_cases() -> dict[str, Case]:
    """Name → case."""
    return training_phase.list_cases(CONTESTANTS, 120.0, equal=CONTESTANTS[1:])


def run_case(case: str) -> dict[str, Any]:
    """The figures of one case."""
    rows = Rows.full(64, 2) if TINY else Rows.full(2048, 2)
    return training_phase.run_case("qlora", case, "8b", rows, CONTESTANTS[0])


def build_tables(results: dict[str, Any]) -> list[str]:
    """Markdown of all figures."""
    return training_phase.build_tables(results, CONTESTANTS[0])
