"""Figures as Markdown: a page for people, the same on the terminal."""

from importlib import import_module
from typing import Any

from benchmarks import report
from benchmarks.gpu.context import RESERVED

LONGEST = 230  # characters of a case's figures in a table; all of them are in the JSON file


def build_page(results: dict[str, Any]) -> str:
    """The page of a whole run."""
    machine = results["machine"]
    card = machine["card"] or {}
    facts = {f"GPU {key}": value for key, value in card.items()} | machine["smi"]
    facts |= {key: value for key, value in machine.items() if key not in ("card", "smi")}
    parts = [
        f"# {card.get('name', 'Tiny models on a CPU')}",
        f"`make gpu`, rounds: {results['rounds']}. Contestants take turns on the same machine, and a ratio is taken within a round. "
        "What each phase does: benchmarks/gpu/README.md. Every figure: the JSON file beside this page.",
        ", ".join(f"{key} {format_value(value)}" for key, value in facts.items()) + ".",
    ]
    for name, found in results["phases"].items():
        parts += [f"## {name}", *build_phase(name, found)]
    return "\n\n".join(parts) + "\n"


def build_phase(name: str, found: dict[str, Any]) -> list[str]:
    """Its table, clocks, and what failed or is missing."""
    phase, cases = import_module(f"benchmarks.gpu.phases.{name}"), found["cases"]
    build = getattr(phase, "build_tables", None)
    parts = [*build(cases)] if build else [build_case_table(cases)]
    if found.get("clocks"):
        spreads = [f"{field} {report.cells(spread, 0)}" for field, spread in found["clocks"].items()]
        parts.append(f"While it computed, median (min–max): {', '.join(spreads)}.")
    absent: dict[str, list[str]] = {}
    for case, figures in cases.items():
        if "missing" in figures:
            absent.setdefault(figures["missing"], []).append(case)
    parts += [f"Missing: {reason} ({', '.join(names)})." for reason, names in absent.items()]
    failed = [f"- `{case}`: {figures['error']}" for case, figures in cases.items() if "error" in figures]
    return [*parts, *(["Failed:\n" + "\n".join(failed)] if failed else [])]


def build_case_table(cases: dict[str, Any]) -> str:
    """A line a case: whether it is as it should be, and its figures."""
    rows = []
    for case, figures in cases.items():
        listed = "; ".join(f"{key} {format_value(value)}" for key, value in figures.items() if key not in RESERVED)
        rows.append([case, judge(figures), f"{figures.get('seconds', 0):.1f}", listed[:LONGEST].replace("|", "/")])
    return report.table(["case", "ok", "s", "figures"], rows)


def judge(figures: dict[str, Any]) -> str:
    """One word: yes, NO (it computes, but not as it should), failed, missing."""
    state = next((state for key, state in {"error": "failed", "missing": "missing"}.items() if key in figures), None)
    return state or format_value(bool(figures.get("ok", True)))


def build_columns(cases: dict[str, Any], *names: str) -> str:
    """A line a case with figures, a column for each of `names`."""
    found = {case: figures for case, figures in cases.items() if not {"error", "missing"} & figures.keys()}
    return report.table(
        ["case", *names], [[case, *(format_value(one.get(name)) for name in names)] for case, one in found.items()]
    )


def format_value(value: Any) -> str:
    """A figure as a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return " ".join(str(value).split())
