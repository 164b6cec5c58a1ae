"""What the page of action=browse asks for, as plain values: runs, one run, several beside each other, their curves and adapters."""

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftrun.artifacts import filter_parser
from peftrun.artifacts.run_layout import METRICS
from peftrun.errors import ConfigError
from peftrun.formatting import select_finite
from peftrun.io.atomic_files import read_json_lines
from peftrun.results.catalog import adapter_comparison, comparison, index, query, table
from peftrun.results.catalog.index import IndexedRun
from peftrun.results.catalog.liveness import RUNNING
from peftrun.results.report.line_charts import NARROW, WIDE, ChartStyle, Series, draw_chart

SERVED = ("report.html", "curves.svg")  # the only files of a run that a browser is given
CURVES = {"loss": "loss in training", "eval_loss": "loss on validation rows", "learning_rate": "learning rate"}
SVG = "http://www.w3.org/2000/svg"
FIRST = ("run", "status", "metric", "date", "task", "method", "rank", "base")  # columns of the table
COLORS = 7  # of curves; further ones are grey
MAX_ROWS = 1000  # rows that are sent at once
Values = dict[str, Any]


class UnknownRunError(Exception):
    """There is no such run."""


class RunCatalog:
    """The runs below some folders, each under an id that says nothing of where it lies."""

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = list(roots)
        self._folders: dict[str, str] = {}
        self._lock = threading.Lock()  # the server answers from several threads

    def runs(self, text: str | None, sort: str | None) -> Values:
        """The table. Raises: ConfigError: `text` cannot be read, or a column is not there."""
        with self._lock:
            found = query.query_runs(self.roots, text, sort, MAX_ROWS, key="")
            self._remember_runs(found.runs)
        cells = _order_by_use(table.build_columns(found, _list_queried_columns(text, sort))) if found.runs else {}
        return {
            "columns": [{"name": name, "title": own[0], "right": name in table.RIGHT} for name, own in cells.items()],
            "runs": [
                _build_row(run, [own[place] for own in cells.values()]) for place, run in enumerate(found.runs, 1)
            ],
            "matching": found.matching,
            "total": found.total,
            "running": sum(run.facts.get("status") == RUNNING for run in found.runs),
            "roots": self.roots,
        }

    def names(self) -> list[str]:
        """Every column that may be asked about."""
        with self._lock:
            return query.query_runs(self.roots, with_config=True).columns.names()

    def one(self, name: str) -> Values:
        """All about one run. Raises: Unknown."""
        run = self._run(name)
        found: Values = table.serialize_run(run)
        made, alone = run.facts.get("adapter"), comparison.compare_runs([run])
        return {
            **found,
            "id": name,
            "cells": [[key, value] for key, value in _build_cells(alone)],
            "metrics": _format_metrics(alone),
            "files": [file for file in SERVED if self.file(name, file)],
            "adapter_norms": table.replace_nonfinite(adapter_comparison.measure_norms(Path(made).absolute()))
            if made
            else None,
            "running": run.facts.get("status") == RUNNING,
        }

    def compare_runs(self, names: Sequence[str]) -> Values:
        """Several beside each other. Raises: Unknown. ConfigError: fewer than two, or too many."""
        runs = [self._run(name) for name in dict.fromkeys(names)]
        if not 2 <= len(runs) <= comparison.MAX_RUNS:
            raise ConfigError(f"from 2 to {comparison.MAX_RUNS} runs stand beside each other; choose as many")
        found = comparison.compare_runs(comparison.check_readable(runs, "runs"))
        running = any(run.facts.get("status") == RUNNING for run in runs)
        return {**found.as_dict(), "sections": comparison.build_sections(found), "running": running}

    def curves(self, names: Sequence[str], narrow: bool = False) -> list[Values]:
        """Charts as SVG, every word escaped, a line a run; none for what no run has logged. Raises: Unknown."""
        runs = [self._run(name) for name in dict.fromkeys(names)]
        rows = [read_json_lines(Path(run.folder) / METRICS) for run in runs]
        charts = []
        for key, what in CURVES.items():
            series = [
                Series(letter, _pick_color(place), select_finite(each, key), smooth=key == "loss" and len(runs) < 4)
                for place, (letter, each) in enumerate(zip(comparison.LETTERS, rows, strict=False))
            ]
            if any(one.points for one in series):
                size = (NARROW if narrow else WIDE, 260 if key == "loss" else 210)
                drawn = draw_chart(f"curve-{key}", what, series, ChartStyle(size))
                charts.append({"name": key, "svg": drawn.replace("<svg", f'<svg xmlns="{SVG}"', 1)})
        return charts

    def adapters(self, one: str, other: str) -> Values:
        """Two adapters, module by module. Raises: Unknown."""
        folders = [self._run(name).facts.get("adapter") for name in (one, other)]
        if not all(folders):
            return {"problem": "one of the two has made no adapter"}
        found: Values = table.replace_nonfinite(
            adapter_comparison.compare_adapters(*(Path(str(folder)).absolute() for folder in folders))
        )
        return found

    def file(self, name: str, file: str) -> Path | None:
        """One of `SERVED` of a run, where it has it as a plain file. Raises: Unknown."""
        path = Path(self._find_folder(name)) / file
        return path if file in SERVED and path.is_file() and not path.is_symlink() else None

    def _remember_runs(self, runs: Sequence[IndexedRun]) -> None:
        self._folders |= {make_run_id(run.folder): run.folder for run in runs}

    def _find_folder(self, name: str) -> str:
        with self._lock:
            if name not in self._folders:
                self._remember_runs(index.load_runs(self.roots))
            folder = self._folders.get(name)
        if folder is None or not os.path.isdir(folder):
            raise UnknownRunError(name)
        return folder

    def _run(self, name: str) -> IndexedRun:
        found = index.load_run(self._find_folder(name))
        if found is None:
            raise UnknownRunError(name)
        return found


def make_run_id(folder: str) -> str:
    """A run's id in addresses."""
    return hashlib.sha256(folder.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _list_queried_columns(text: str | None, sort: str | None) -> list[str]:
    names = filter_parser.list_columns(filter_parser.parse_filter(text, "where")) if text and text.strip() else []
    return list(dict.fromkeys([*names, *([sort.removeprefix("-")] if sort else [])]))


def _order_by_use(cells: dict[str, list[str]]) -> dict[str, list[str]]:
    """What people look for first is in sight first, however wide the rest is."""
    return {name: cells[name] for name in [*(one for one in FIRST if one in cells), *cells]}


def _build_row(run: IndexedRun, cells: list[str]) -> Values:
    facts = run.facts
    return {
        "id": make_run_id(run.folder),
        "cells": cells,
        "status": facts.get("status"),
        "error": facts.get("error"),
        "adapter": bool(facts.get("adapter")),
        "report": os.path.isfile(os.path.join(run.folder, SERVED[0])),
    }


def _build_cells(alone: comparison.Comparison) -> list[tuple[str, str]]:
    found = comparison.build_sections(alone)
    return [(key, values[0]) for part in ("what it is", "cost") for key, values in found.get(part, {}).items()]


def _format_metrics(alone: comparison.Comparison) -> list[Values]:
    return [
        {
            "name": name,
            "before": pairs[0][0] and table.format_metric(pairs[0][0]),
            "after": table.format_metric(pairs[0][1]),
        }
        for name, pairs in alone.metrics.items()
    ]


def _pick_color(place: int) -> str:
    return f"c{place}" if place < COLORS else "rest"
