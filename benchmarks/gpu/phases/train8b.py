"""Training steps on 7.4 billion parameters (Llama-3-8B's shape, a vocabulary of 49,152), 2 rows of 4096 tokens."""

from typing import Any

from benchmarks.gpu import training_phase
from benchmarks.gpu.contest import Rows
from benchmarks.gpu.context import CARD, OPTIONS, TINY, Case
from benchmarks.gpu.phases import train1b

SECONDS = 900
CONTESTANTS = tuple(name for name in train1b.CONTESTANTS if name != "trainer_checkpointing")


def list_cases() -> dict[str, Case]:
    """Name → case; contestants are compared on a tiny model in train1b, whose they are."""
    return training_phase.list_cases(CONTESTANTS, 110.0, equal=())


def run_case(case: str) -> dict[str, Any]:
    """The figures of one case."""
    # two rows do not fit below 100 GiB without checkpointing
    batch = OPTIONS["batch8"] or (2 if CARD.get("memory_gib", 0) > 100 else 1)
    rows = Rows.full(64, 2) if TINY else Rows.full(4096, batch)
    return training_phase.run_case("train8b", case, "8b", rows, CONTESTANTS[0])


def build_tables(results: dict[str, Any]) -> list[str]:
    """Markdown of all figures."""
    return training_phase.build_tables(results, CONTESTANTS[0])
