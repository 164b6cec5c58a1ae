"""What all phases need to know: tiny or not, device, folders, time limits. It comes from the environment, so that workers agree."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import VARIABLE

OPTIONS: dict[str, Any] = json.loads(os.environ.get(VARIABLE, "{}"))
TINY: bool = OPTIONS.get("tiny", False)
ROUNDS: int = OPTIONS.get("rounds", 1)
CARD: dict[str, Any] = OPTIONS.get("card") or {}
WORK = Path(OPTIONS.get("work", "."))  # base models and runs; removed at the end
LOGS = Path(OPTIONS.get("logs", "."))
DEVICE = "cpu" if TINY else "cuda"
HALF = "float32" if TINY else "bfloat16"  # many CPUs compute bfloat16 slowly
PATIENCE = 6 if TINY else 1  # factor of every time limit: a shared CPU takes longer
GIB, MIB = 2**30, 2**20
RESERVED = ("seconds", "ok", "error", "missing", "trace")  # keys of a case's figures that are no figure


class Case(NamedTuple):
    """Limit in seconds, and whether it gets a process of its own."""

    seconds: float
    alone: bool = False


class Missing(Exception):
    """This machine lacks what a case needs; the message says what, and what to do."""


def interleave(names: dict[str, Case], rounds: int = ROUNDS) -> dict[str, Case]:
    """Every contestant once a round, `NAME@ROUND`: if time ends, later rounds are missing, not later contestants."""
    return {f"{name}@{number}": case for number in range(1, rounds + 1) for name, case in names.items()}


def group_rounds(results: dict[str, dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Contestant → round → figures, of the rounds that gave figures."""
    grouped: dict[str, dict[int, dict[str, Any]]] = {}
    for case, figures in results.items():
        name, at, number = case.partition("@")
        if at:
            rounds = grouped.setdefault(name, {})
            if not {"error", "missing"} & figures.keys():
                rounds[int(number)] = figures
    return grouped


def need_gpu(what: str) -> None:
    """Raises Missing without a GPU."""
    if DEVICE == "cpu":
        raise Missing(f"{what} needs a GPU")


def need_package(module: str, advice: str) -> None:
    """Raises Missing if the package is not installed."""
    if find_spec(module) is None:
        raise Missing(f"{module} is not installed; type {advice}")


def need_compiler(what: str) -> None:
    """Raises Missing without a C compiler, and on a CPU, where compiling takes minutes."""
    need_gpu(f"{what}, which compiles for minutes on a CPU,")
    if not (shutil.which("gcc") or shutil.which("cc")):
        raise Missing(f"{what} needs a C compiler: install gcc")
