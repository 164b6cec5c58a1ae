"""Data for the page of action=browse as JSON-serializable values: run table, single run, comparison, curves, adapters."""

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

SERVED = ("report.html", "curves.svg")  # the only files of a run that are served
CURVES = {"loss": "loss in training", "eval_loss": "loss on validation rows", "learning_rate": "learning rate"}
SVG = "http://www.w3.org/2000/svg"
FIRST = ("run", "status", "metric", "date", "task", "method", "rank", "base")  # table columns that come first
COLORS = 7  # classes c0 … c6 of report.css; further curves are gray
MAX_ROWS = 1000  # rows per response
Values = dict[str, Any]


class UnknownRunError(Exception):
    """There is no run with this id."""


class RunCatalog:
    """The runs below some folders, each under an id that does not reveal its path."""

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = list(roots)
        self._folders: dict[str, str] = {}
        self._lock = threading.Lock()  # FastAPI runs sync routes in a thread pool

    def list_runs(self, text: str | None, sort: str | None) -> Values:
        """The run table. Raises: ConfigError: `text` cannot be parsed, or a column does not exist."""
        with self._lock:
            result = query.query_runs(self.roots, text, sort, MAX_ROWS, key="")
            self._remember_runs(result.runs)
        queried = filter_parser.list_columns(filter_parser.parse_filter(text, "where")) if text and text.strip() else []
        queried += [sort.removeprefix("-")] if sort else []
        columns = table.build_columns(result, list(dict.fromkeys(queried))) if result.runs else {}
        # A wide table is scrolled, so what identifies a run and its result come first.
        columns = {name: columns[name] for name in (*FIRST, *columns) if name in columns}
        rows = [
            {
                "id": make_run_id(run.folder),
                "cells": [column[number] for column in columns.values()],
                "status": run.facts.get("status"),
                "error": run.facts.get("error"),
                "adapter": bool(run.facts.get("adapter")),
                "report": os.path.isfile(os.path.join(run.folder, SERVED[0])),
            }
            for number, run in enumerate(result.runs, 1)
        ]
        return {
            "columns": [
                {"name": name, "title": column[0], "right": name in table.RIGHT} for name, column in columns.items()
            ],
            "runs": rows,
            "matching": result.matching,
            "total": result.total,
            "running": sum(run.facts.get("status") == RUNNING for run in result.runs),
            "roots": self.roots,
        }

    def list_columns(self) -> list[str]:
        """Names of all columns that a query may use."""
        with self._lock:
            return query.query_runs(self.roots, with_config=True).columns.list_names()

    def describe_run(self, name: str) -> Values:
        """Everything about one run. Raises: UnknownRunError."""
        run = self._load_run(name)
        values: Values = table.serialize_run(run)
        adapter, comparison_of_one = run.facts.get("adapter"), comparison.compare_runs([run])
        sections = comparison.build_sections(comparison_of_one)
        norms = adapter_comparison.measure_norms(Path(adapter).absolute()) if adapter else None
        return {
            **values,
            "id": name,
            "cells": [
                [key, cells[0]] for title in ("what it is", "cost") for key, cells in sections.get(title, {}).items()
            ],
            "metrics": [
                {"name": metric, "before": before and table.format_metric(before), "after": table.format_metric(after)}
                for metric, ((before, after),) in comparison_of_one.metrics.items()
            ],
            "files": [file for file in SERVED if self.find_file(name, file)],
            "adapter_norms": table.replace_nonfinite(norms),
            "running": run.facts.get("status") == RUNNING,
        }

    def compare_runs(self, names: Sequence[str]) -> Values:
        """Several runs side by side. Raises: UnknownRunError. ConfigError: fewer than two, or too many."""
        runs = [self._load_run(name) for name in dict.fromkeys(names)]
        if not 2 <= len(runs) <= comparison.MAX_RUNS:
            raise ConfigError(f"from 2 to {comparison.MAX_RUNS} runs can be compared; choose as many")
        compared = comparison.compare_runs(comparison.check_readable(runs, "runs"))
        running = any(run.facts.get("status") == RUNNING for run in runs)
        return {**compared.as_dict(), "sections": comparison.build_sections(compared), "running": running}

    def draw_curves(self, names: Sequence[str], narrow: bool = False) -> list[Values]:
        """Charts as SVG with one line per run, all text escaped; metrics that no run has logged are left out. Raises: UnknownRunError."""
        runs = [self._load_run(name) for name in dict.fromkeys(names)]
        metric_rows = [read_json_lines(Path(run.folder) / METRICS) for run in runs]
        charts = []
        for key, title in CURVES.items():
            smooth = key == "loss" and len(runs) < 4  # smoothing draws two lines per run, too many for more runs
            series = [
                Series(letter, f"c{number}" if number < COLORS else "rest", select_finite(rows, key), smooth=smooth)
                for number, (letter, rows) in enumerate(zip(comparison.LETTERS, metric_rows, strict=False))
            ]
            if any(line.points for line in series):
                size = (NARROW if narrow else WIDE, 260 if key == "loss" else 210)
                svg = draw_chart(f"curve-{key}", title, series, ChartStyle(size))
                # The page parses it as an XML document, where the namespace must be declared.
                charts.append({"name": key, "svg": svg.replace("<svg", f'<svg xmlns="{SVG}"', 1)})
        return charts

    def compare_adapters(self, first: str, second: str) -> Values:
        """Two adapters, module by module. Raises: UnknownRunError."""
        folders = [self._load_run(name).facts.get("adapter") for name in (first, second)]
        if not all(folders):
            return {"problem": "one of the two runs has no adapter"}
        compared: Values = table.replace_nonfinite(
            adapter_comparison.compare_adapters(*(Path(str(folder)).absolute() for folder in folders))
        )
        return compared

    def find_file(self, name: str, file: str) -> Path | None:
        """Path of one of the `SERVED` files of a run; None if missing or a symlink, which could point outside the run. Raises: UnknownRunError."""
        path = Path(self._find_folder(name)) / file
        return path if file in SERVED and path.is_file() and not path.is_symlink() else None

    def _remember_runs(self, runs: Sequence[IndexedRun]) -> None:
        self._folders |= {make_run_id(run.folder): run.folder for run in runs}

    def _find_folder(self, name: str) -> str:
        with self._lock:
            if name not in self._folders:  # an address from before the server was restarted
                self._remember_runs(index.load_runs(self.roots))
            folder = self._folders.get(name)
        if folder is None or not os.path.isdir(folder):
            raise UnknownRunError(name)
        return folder

    def _load_run(self, name: str) -> IndexedRun:
        run = index.load_run(self._find_folder(name))
        if run is None:
            raise UnknownRunError(name)
        return run


def make_run_id(folder: str) -> str:
    """Id of a run in URLs: 16 hex digits of its path's sha256."""
    return hashlib.sha256(folder.encode("utf-8", "surrogatepass")).hexdigest()[:16]
