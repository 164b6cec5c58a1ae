"""Tables of other tools' keys → peftrun's: one YAML file a tool, beside this one. Light.

`action=import` converts with them, error messages answer with them, and docs/howto/from-*.md show them.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from peftrun.config import yaml_files

FOLDER = Path(__file__).parent
TOOLS = ("axolotl", "llama-factory", "trl", "ms-swift", "peft")
VALUE, OTHERS, DEFAULT = "VALUE", "others", ""
KINDS = ("to", "not_needed", "no_counterpart", "by_hand")


@dataclass(frozen=True)
class Row:
    """What becomes of some keys of a tool. One of `to`, `not_needed`, `no_counterpart` and `by_hand` is set.

    Attributes:
        to: what to type, in which VALUE is their value; or value → what to type, empty for the default.
        not_needed, no_counterpart, by_hand: why, or what to do instead. `by_hand`: it depends on more than this key.
        note: what is different.
    """

    keys: tuple[str, ...]
    to: str | dict[str, str] = DEFAULT
    not_needed: str = ""
    no_counterpart: str = ""
    by_hand: str = ""
    note: str = ""


@dataclass(frozen=True)
class LeftOut:
    """What the tool does where a key is missing. `default`: in its words. `to`: the same in peftrun. `note`: follows it."""

    key: str
    default: str
    to: str
    note: str = ""


@dataclass(frozen=True)
class PeerTable:
    """The table of one tool.

    Attributes:
        title: its name as it is written.
        marks: keys by which a file is recognized as this tool's.
        commands: words by which a command line is.
        sections: heading → rows.
        left_out: its defaults that are not peftrun's.
    """

    title: str
    marks: tuple[str, ...]
    commands: tuple[str, ...]
    sections: dict[str, tuple[Row, ...]]
    left_out: tuple[LeftOut, ...]

    @property
    def rows(self) -> dict[str, Row]:
        """Key → its row."""
        return {key: row for rows in self.sections.values() for row in rows for key in row.keys}


@cache
def read_table(tool: str) -> PeerTable:
    """The table of one of `TOOLS`."""
    values = yaml_files.load_plain(FOLDER / f"{tool}.yaml")
    sections = {
        heading: tuple(Row(tuple(row.pop("keys").split()), **row) for row in rows)
        for heading, rows in values["sections"].items()
    }
    left_out = tuple(LeftOut(**row) for row in values["left_out"])
    return PeerTable(values["title"], tuple(values["marks"]), tuple(values["commands"]), sections, left_out)
