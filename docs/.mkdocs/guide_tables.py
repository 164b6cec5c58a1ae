"""The tables of docs/howto/from-*.md, made of those that action=import reads.

python docs/.mkdocs/guide_tables.py writes them.
"""

import re
from pathlib import Path

from peftrun.config.peers import tables

GUIDES = Path(__file__).parents[1] / "howto"
TOOLS = [tool for tool in tables.TOOLS if tool != "peft"]
HEADS = {"key": ["key", "peftrun", "what is different"], "left out": ["left out", "{}'s default", "peftrun"]}
TABLE = re.compile(r"(?<=\n\n)\| (key|left out) \|[^\n]*\|[^\n]*\|\n(?:\|[^\n]*\n)+")


def render_guide(tool: str, text: str) -> str:
    """The guide with its tables made anew; its other text, and tables of two columns, stay."""
    table = tables.read_table(tool)
    rendered = iter([*map(_render_section, table.sections.values()), _render_left_out(table)])
    return TABLE.sub(lambda _: next(rendered), text)


def _render_section(rows: tuple[tables.Row, ...]) -> str:
    return _render_rows(HEADS["key"], [(_list_names(row.keys), _render_cell(row), row.note) for row in rows])


def _render_left_out(table: tables.PeerTable) -> str:
    head = [name.format(table.title) for name in HEADS["left out"]]
    rows = [(f"`{row.key}`", row.default, " ".join(filter(None, [f"`{row.to}`", row.note]))) for row in table.left_out]
    return _render_rows(head, rows)


def _render_rows(head: list[str], rows: list[tuple[str, str, str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in rows]) + "\n"


def _list_names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _render_cell(row: tables.Row) -> str:
    for kind in ("not_needed", "no_counterpart", "by_hand"):
        if getattr(row, kind):
            return f"{kind.replace('_', ' ')}: {getattr(row, kind)}"
    if isinstance(row.to, str):
        return f"`{row.to}`"
    cases = ((name if name == tables.OTHERS else f"`{name}`", text) for name, text in row.to.items())
    return "; ".join(f"{name}: {f'`{text}`' if text else 'the default'}" for name, text in cases)


if __name__ == "__main__":
    for tool in TOOLS:
        guide = GUIDES / f"from-{tool}.md"
        guide.write_text(render_guide(tool, guide.read_text(encoding="utf-8")), encoding="utf-8")
