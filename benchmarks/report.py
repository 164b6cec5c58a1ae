"""What the benchmarks share: spreads, ratios, the machine in words, and a Markdown table with its JSON beside it."""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("peftrun", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "hydra-core", "omegaconf")


def spread(values: Iterable[float]) -> dict[str, float]:
    """Min, median and max."""
    found = sorted(values)
    return {"min": found[0], "median": statistics.median(found), "max": found[-1]}


def ratios(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Spread of `values` ÷ `reference`, each taken in the same round."""
    return spread(value / other for value, other in zip(values, reference, strict=True))


def cells(found: dict[str, float], digits: int = 2, scale: float = 1.0) -> str:
    """A spread as one cell: `median (min–max)`."""
    low, middle, high = (f"{found[key] * scale:.{digits}f}" for key in ("min", "median", "max"))
    return f"{middle} ({low}–{high})"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """Processor, cores, load, system and versions; nothing that names this machine."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def write(output: Path, title: str, parts: Sequence[str], figures: dict[str, Any], where: dict[str, Any]) -> None:
    """Writes and prints the Markdown; puts every single figure into a JSON file beside it."""
    facts = ", ".join(f"{key} {value}" for key, value in where.items())
    text = "\n\n".join([f"# {title}", *parts, f"Machine, its load before the first round, versions: {facts}."]) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    whole = {"machine": where, **figures}
    output.with_suffix(".json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(text)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
