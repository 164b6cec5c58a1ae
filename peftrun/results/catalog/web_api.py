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
from peftrun.formatting import finite
from peftrun.io.atomic_files import read_json_lines
from peftrun.results.catalog import adapter_comparison, comparison, index, query, table
from peftrun.results.catalog.index import Run
from peftrun.results.catalog.liveness import RUNNING
from peftrun.results.report.line_charts import NARROW, WIDE, Look, Series, chart

SERVED = ("report.html", "curves.svg")  # the only files of a run that a browser is given
CURVES = {"loss": "loss in training", "eval_loss": "loss on validation rows", "learning_rate": "learning rate"}
SVG = "http://www.w3.org/2000/svg"
FIRST = ("run", "status", "metric", "date", "task", "method", "rank", "base")  # columns of the table
COLOURS = 7  # of curves; further ones are grey
MOST = 1000  # rows that are sent at once
Values = dict[str, Any]


class Unknown(Exception):
    """There is no such run."""


class Catalogue:
    """The runs below some folders, each under an id that says nothing of where it lies."""

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = list(roots)
        self._folders: dict[str, str] = {}
        self._lock = threading.Lock()  # the server answers from several threads

    def runs(self, text: str | None, sort: str | None) -> Values:
        """The table. Raises: ConfigError: `text` cannot be read, or a column is not there."""
        with self._lock:
            found = query.find(self.roots, text, sort, MOST, key="")
            self._know(found.runs)
        cells = _by_use(table.columns(found, _asked(text, sort))) if found.runs else {}
        return {
            "columns": [{"name": name, "title": own[0], "right": name in table.RIGHT} for name, own in cells.items()],
            "runs": [_row(run, [own[place] for own in cells.values()]) for place, run in enumerate(found.runs, 1)],
            "matching": found.matching,
            "total": found.total,
            "running": sum(run.facts.get("status") == RUNNING for run in found.runs),
            "roots": self.roots,
        }

    def names(self) -> list[str]:
        """Every column that may be asked about."""
        with self._lock:
            return query.find(self.roots, with_config=True).columns.names()

    def one(self, name: str) -> Values:
        """All about one run. Raises: Unknown."""
        run = self._run(name)
        found: Values = table.as_dict(run)
        made, alone = run.facts.get("adapter"), comparison.of([run])
        return {
            **found,
            "id": name,
            "cells": [[key, value] for key, value in _told(alone)],
            "metrics": _metrics(alone),
            "files": [file for file in SERVED if self.file(name, file)],
            "adapter_norms": table.plain(adapter_comparison.norms(Path(made).absolute())) if made else None,
            "running": run.facts.get("status") == RUNNING,
        }

    def compared(self, names: Sequence[str]) -> Values:
        """Several beside each other. Raises: Unknown. ConfigError: fewer than two, or too many."""
        runs = [self._run(name) for name in dict.fromkeys(names)]
        if not 2 <= len(runs) <= comparison.MOST:
            raise ConfigError(f"from 2 to {comparison.MOST} runs stand beside each other; choose as many")
        found = comparison.of(comparison.readable(runs, "runs"))
        running = any(run.facts.get("status") == RUNNING for run in runs)
        return {**found.as_dict(), "sections": comparison.sections(found), "running": running}

    def curves(self, names: Sequence[str], narrow: bool = False) -> list[Values]:
        """Charts as SVG, every word escaped, a line a run; none for what no run has logged. Raises: Unknown."""
        runs = [self._run(name) for name in dict.fromkeys(names)]
        rows = [read_json_lines(Path(run.folder) / METRICS) for run in runs]
        charts = []
        for key, what in CURVES.items():
            series = [
                Series(letter, _colour(place), finite(each, key), smooth=key == "loss" and len(runs) < 4)
                for place, (letter, each) in enumerate(zip(comparison.LETTERS, rows, strict=False))
            ]
            if any(one.points for one in series):
                size = (NARROW if narrow else WIDE, 260 if key == "loss" else 210)
                drawn = chart(f"curve-{key}", what, series, Look(size))
                charts.append({"name": key, "svg": drawn.replace("<svg", f'<svg xmlns="{SVG}"', 1)})
        return charts

    def adapters(self, one: str, other: str) -> Values:
        """Two adapters, module by module. Raises: Unknown."""
        folders = [self._run(name).facts.get("adapter") for name in (one, other)]
        if not all(folders):
            return {"problem": "one of the two has made no adapter"}
        found: Values = table.plain(adapter_comparison.beside(*(Path(str(folder)).absolute() for folder in folders)))
        return found

    def file(self, name: str, file: str) -> Path | None:
        """One of `SERVED` of a run, where it has it as a plain file. Raises: Unknown."""
        path = Path(self._folder(name)) / file
        return path if file in SERVED and path.is_file() and not path.is_symlink() else None

    def _know(self, runs: Sequence[Run]) -> None:
        self._folders |= {name_of(run.folder): run.folder for run in runs}

    def _folder(self, name: str) -> str:
        with self._lock:
            if name not in self._folders:
                self._know(index.runs(self.roots))
            folder = self._folders.get(name)
        if folder is None or not os.path.isdir(folder):
            raise Unknown(name)
        return folder

    def _run(self, name: str) -> Run:
        found = index.one(self._folder(name))
        if found is None:
            raise Unknown(name)
        return found


def name_of(folder: str) -> str:
    """A run's id in addresses."""
    return hashlib.sha256(folder.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _asked(text: str | None, sort: str | None) -> list[str]:
    names = filter_parser.columns(filter_parser.parsed(text, "where")) if text and text.strip() else []
    return list(dict.fromkeys([*names, *([sort.removeprefix("-")] if sort else [])]))


def _by_use(cells: dict[str, list[str]]) -> dict[str, list[str]]:
    """What people look for first is in sight first, however wide the rest is."""
    return {name: cells[name] for name in [*(one for one in FIRST if one in cells), *cells]}


def _row(run: Run, cells: list[str]) -> Values:
    facts = run.facts
    return {
        "id": name_of(run.folder),
        "cells": cells,
        "status": facts.get("status"),
        "error": facts.get("error"),
        "adapter": bool(facts.get("adapter")),
        "report": os.path.isfile(os.path.join(run.folder, SERVED[0])),
    }


def _told(alone: comparison.Comparison) -> list[tuple[str, str]]:
    found = comparison.sections(alone)
    return [(key, values[0]) for part in ("what it is", "cost") for key, values in found.get(part, {}).items()]


def _metrics(alone: comparison.Comparison) -> list[Values]:
    return [
        {"name": name, "before": pairs[0][0] and table.figure(pairs[0][0]), "after": table.figure(pairs[0][1])}
        for name, pairs in alone.metrics.items()
    ]


def _colour(place: int) -> str:
    return f"c{place}" if place < COLOURS else "rest"
