"""Select the runs that a query asks for, in the requested order."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftrun.artifacts import filter_parser
from peftrun.results.catalog import filter_eval, index
from peftrun.results.catalog.columns import Columns, make_sort_key
from peftrun.results.catalog.index import IndexedRun

# Default selection if `where` does not name `action`: actions that write an adapter or a model; None: an adapter outside runs.
ARTIFACT_ACTIONS = ("train", "save", "merge", "unmerge", "combine", "extract", None)
NEWEST = "-date"


@dataclass(frozen=True)
class SearchResult:
    """The matching runs, sorted and limited. `matching`: their number before the limit; `total`: all runs below the roots."""

    runs: list[IndexedRun]
    columns: Columns
    matching: int
    total: int


def query_runs(
    roots: Sequence[str],
    text: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
    *,
    with_config: bool = False,
    key: str = "action.",
) -> SearchResult:
    """The runs that match `text`, a `where` expression.

    Args:
        sort: a column; with `-` in front, largest first.
        key: prefix of `where` and `sort` in error messages.

    Raises: ConfigError: one line: the expression cannot be parsed, or a column does not exist.
    """
    expression = filter_parser.parse_filter(text, f"{key}where") if text and text.strip() else None
    sort_column = (sort or NEWEST).strip()
    # Configs are large, so they are read only if a column that is used is none of the facts.
    columns_used = [*(filter_parser.list_columns(expression) if expression else ()), sort_column.removeprefix("-")]
    runs = index.load_runs(roots, with_config)
    columns = Columns(runs, with_config)
    if not with_config and not all(map(columns.has_column, columns_used)):
        runs = index.load_runs(roots, with_config=True)
        columns = Columns(runs, with_config=True)
    if not runs:
        return SearchResult([], columns, 0, 0)
    # The last one is the sort column, which does not select actions.
    selected = (
        runs if "action" in columns_used[:-1] else [run for run in runs if run.facts.get("action") in ARTIFACT_ACTIONS]
    )
    if expression:
        matches = filter_eval.compile_filter(expression, columns, runs, f"{key}where")
        selected = [run for run in selected if matches(run)]
    return SearchResult(
        sort_runs(selected, sort_column, columns, f"{key}sort")[:limit], columns, len(selected), len(runs)
    )


def sort_runs(runs: Sequence[IndexedRun], by: str, columns: Columns, key: str = "action.sort") -> list[IndexedRun]:
    """Runs sorted by a column; equal values newest first, missing values last in both directions.

    Raises: ConfigError: there is no such column.
    """
    read_value, is_descending = columns.make_reader(by.removeprefix("-"), key), by.startswith("-")
    newest_first = sorted(runs, key=lambda run: (run.facts.get("date") or "", run.folder), reverse=True)
    keyed = [(make_sort_key(read_value(run)), run) for run in newest_first]
    # Python's sort is stable, also with reverse=True, so equal values stay newest first. Group 2: no value, or NaN.
    ordered = sorted((pair for pair in keyed if pair[0][0] != 2), key=lambda pair: pair[0], reverse=is_descending)
    return [run for _, run in ordered] + [run for (group, _), run in keyed if group == 2]
