"""Training steps on 1.2 billion parameters, 8 rows of 2048 tokens: peftrun and its knobs, transformers.Trainer + PEFT, TRL."""

from typing import Any

from benchmarks.gpu import training_phase
from benchmarks.gpu.contest import Rows
from benchmarks.gpu.context import TINY, Case

SECONDS = 600
CONTESTANTS = (
    "peftrun", "trainer", "trl", "peftrun_liger", "peftrun_nondeterministic", "peftrun_checkpointing", "trl_bf16_base", "trainer_checkpointing",
    "peftrun_compile",
)  # fmt: skip


def list_cases() -> dict[str, Case]:
    """Name → case."""
    return training_phase.list_cases(CONTESTANTS, 75.0, equal=CONTESTANTS[1:])


def run_case(case: str) -> dict[str, Any]:
    """The figures of one case."""
    rows = Rows.full(64, 2) if TINY else Rows.full(2048, 8)
    return training_phase.run_case("train1b", case, "1b", rows, CONTESTANTS[0])


def build_tables(results: dict[str, Any]) -> list[str]:
    """Markdown of all figures."""
    return training_phase.build_tables(results, CONTESTANTS[0])
