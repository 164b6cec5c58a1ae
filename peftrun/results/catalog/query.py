"""The runs that are asked for, in the order that is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftrun.artifacts import filter_parser
from peftrun.results.catalog import filter_eval, index
from peftrun.results.catalog.columns import Columns, order
from peftrun.results.catalog.index import Run

# Unless `where` asks for actions itself: those that make an adapter or a model, and adapters outside runs.
MAKING = ("train", "save", "merge", "unmerge", "combine", "extract", None)
NEWEST = "-date"


@dataclass(frozen=True)
class Found:
    """The runs, sorted and cut. `matching`: how many there were before the cut; `total`: of all below the roots, whatever was asked."""

    runs: list[Run]
    columns: Columns
    matching: int
    total: int


def find(
    roots: Sequence[str],
    text: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
    *,
    with_config: bool = False,
    key: str = "action.",
) -> Found:
    """What `text`, an expression of `where`, asks for.

    Args: sort: a column; `-` before it: the largest first. key: what stands before `where` and `sort` where the user types them.

    Raises: ConfigError: one line: the expression cannot be read, or a column is not there.
    """
    expression = filter_parser.parsed(text, f"{key}where") if text and text.strip() else None
    by = (sort or NEWEST).strip()
    asked = [*(filter_parser.columns(expression) if expression else ()), by.removeprefix("-")]
    runs = index.runs(roots, with_config)
    columns = Columns(runs, with_config)
    if not with_config and not all(map(columns.knows, asked)):
        runs = index.runs(roots, with_config=True)
        columns = Columns(runs, with_config=True)
    if not runs:
        return Found([], columns, 0, 0)
    found = runs if "action" in asked[:-1] else [run for run in runs if run.facts.get("action") in MAKING]
    if expression:
        meets = filter_eval.test(expression, columns, runs, f"{key}where")
        found = [run for run in found if meets(run)]
    return Found(ordered(found, by, columns, f"{key}sort")[:limit], columns, len(found), len(runs))


def ordered(runs: Sequence[Run], by: str, columns: Columns, key: str = "action.sort") -> list[Run]:
    """Sorted by a column; of equals the newest first; those without a value last in both directions.

    Raises: ConfigError: there is no such column.
    """
    value, falling = columns.value(by.removeprefix("-"), key), by.startswith("-")
    newest = sorted(runs, key=lambda run: (run.facts.get("date") or "", run.folder), reverse=True)
    known = [run for run in newest if order(value(run))[0] != 2]
    rest = [run for run in newest if order(value(run))[0] == 2]
    return [*sorted(known, key=lambda run: order(value(run)), reverse=falling), *rest]
