"""The runs that are asked for, in the order that is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftrun.artifacts import filter_parser
from peftrun.results.catalog import filter_eval, index
from peftrun.results.catalog.columns import Columns, make_sort_key
from peftrun.results.catalog.index import IndexedRun

# Unless `where` asks for actions itself: those that make an adapter or a model, and adapters outside runs.
ARTIFACT_ACTIONS = ("train", "save", "merge", "unmerge", "combine", "extract", None)
NEWEST = "-date"


@dataclass(frozen=True)
class SearchResult:
    """The runs, sorted and cut. `matching`: how many there were before the cut; `total`: of all below the roots, whatever was asked."""

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
    """What `text`, an expression of `where`, asks for.

    Args: sort: a column; `-` before it: the largest first. key: what stands before `where` and `sort` where the user types them.

    Raises: ConfigError: one line: the expression cannot be read, or a column is not there.
    """
    expression = filter_parser.parse_filter(text, f"{key}where") if text and text.strip() else None
    by = (sort or NEWEST).strip()
    asked = [*(filter_parser.list_columns(expression) if expression else ()), by.removeprefix("-")]
    runs = index.load_runs(roots, with_config)
    columns = Columns(runs, with_config)
    if not with_config and not all(map(columns.has_column, asked)):
        runs = index.load_runs(roots, with_config=True)
        columns = Columns(runs, with_config=True)
    if not runs:
        return SearchResult([], columns, 0, 0)
    found = runs if "action" in asked[:-1] else [run for run in runs if run.facts.get("action") in ARTIFACT_ACTIONS]
    if expression:
        meets = filter_eval.compile_filter(expression, columns, runs, f"{key}where")
        found = [run for run in found if meets(run)]
    return SearchResult(sort_runs(found, by, columns, f"{key}sort")[:limit], columns, len(found), len(runs))


def sort_runs(runs: Sequence[IndexedRun], by: str, columns: Columns, key: str = "action.sort") -> list[IndexedRun]:
    """Sorted by a column; of equals the newest first; those without a value last in both directions.

    Raises: ConfigError: there is no such column.
    """
    value, falling = columns.value(by.removeprefix("-"), key), by.startswith("-")
    newest = sorted(runs, key=lambda run: (run.facts.get("date") or "", run.folder), reverse=True)
    known = [run for run in newest if make_sort_key(value(run))[0] != 2]
    rest = [run for run in newest if make_sort_key(value(run))[0] == 2]
    return [*sorted(known, key=lambda run: make_sort_key(value(run)), reverse=falling), *rest]
