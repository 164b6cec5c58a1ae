"""Rows of different lengths, drawn from a log-normal with a mean of about 500 tokens: padded, without padding, packed.

A step has 8 texts, or 2 packed rows of 2048 tokens, which is as many tokens. What counts is tokens of texts a second.
"""

from typing import Any

from benchmarks.gpu import training_phase
from benchmarks.gpu.contest import STEPS, Rows
from benchmarks.gpu.context import TINY, Case
from benchmarks.gpu.inputs import draw_lengths

SECONDS = 400
CONTESTANTS = ("peftrun", "peftrun_padding_free", "peftrun_packed", "trainer", "trl_packed")


def list_cases() -> dict[str, Case]:
    """Name → case; packed steps have other rows, so only those of the same rows are compared on a tiny model."""
    return training_phase.list_cases(CONTESTANTS, 75.0, equal=("peftrun_padding_free", "trainer"))


def run_case(case: str) -> dict[str, Any]:
    """The figures of one case."""
    mean, longest, texts = (40, 128, 4) if TINY else (500, 2048, 8)
    count = 4 * texts * STEPS  # enough for packed rows too
    packed = case.partition("@")[0].endswith("packed")
    batch = max(1, texts // 4) if packed else texts
    rows = Rows(f"lognormal-{mean}-{count}", draw_lengths(count, mean, longest), longest, batch)
    return training_phase.run_case("lengths", case, "1b", rows, CONTESTANTS[0])


def build_tables(results: dict[str, Any]) -> list[str]:
    """Markdown of all figures."""
    return training_phase.build_tables(results, CONTESTANTS[0])
