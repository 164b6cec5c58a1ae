"""The tables of docs/howto/from-*.md, as a reader of the page understands them."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

GUIDES = Path(__file__).parents[2] / "docs" / "howto"
TABLE_HEADS = {"key": "mapped", "left out": "left_out"}
CASE = re.compile(r"(?:`([^`]*)`|(others)): (?:`([^`]*)`|(the default))")
NOTHING = ("not needed: ", "no counterpart: ")
BY_HAND = "by hand: "
Overrides = list[str]


@cache
def tables(tool: str) -> dict[str, dict[str, str]]:
    """`mapped`: key → the cell that says what becomes of it; `left_out`: key → the cell for where it is not there."""
    found: dict[str, dict[str, str]] = {"mapped": {}, "left_out": {}}
    kind = None
    for line in (GUIDES / f"from-{tool}.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            kind = None
        elif cells[0] in TABLE_HEADS and len(cells) == 3:
            kind = TABLE_HEADS[cells[0]]
        elif kind and not cells[0].startswith("---"):
            for key in re.findall(r"`([^`]+)`", cells[0]):
                assert key not in found[kind], f"{key} stands in two rows of the guide for {tool}"
                found[kind][key] = cells[1] if kind == "mapped" else cells[2]
    return found


def cases(cell: str) -> dict[str, str]:
    """Value, or `others` → the overrides for it, of a cell that tells values apart; empty for any other cell."""
    return {match[1] or match[2]: match[3] or "" for match in CASE.finditer(cell)}


def overrides_in(cell: str, value: Any) -> Overrides:
    """What a cell makes of a value. Raises: KeyError: a value that the cell does not know."""
    if cell.startswith(NOTHING):
        return []
    known = cases(cell)
    if known:
        text = known[shown(value)] if shown(value) in known else known["others"]
    else:
        text = re.findall(r"`([^`]+)`", cell)[0]
        assert "VALUE" in text, cell
    return [part.replace("VALUE", shown(value)) for part in shlex.split(text)]


def shown(value: Any) -> str:
    """A value of theirs as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def keys_of(keys: dict[str, Any]) -> dict[str, Any]:
    """Their keys, those of the first source of rows among them as `datasets.path`, …"""
    first = (keys.get("datasets") or [{}])[0]
    return keys | {f"datasets.{key}": value for key, value in first.items()}
