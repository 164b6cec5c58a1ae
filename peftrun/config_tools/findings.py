"""What is found out about an option, and how bad it is. Light."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FINE, NOTE, FAULT = "fine", "note", "fault"
KEY_PATTERN = re.compile(r"[\w.]+")
OTHER_MACHINE_FILE = re.compile(r"=(/|~)[^:]*: there is no such")  # a file of another machine
MISSING_FILE_PHRASES = ("there is no such", "is not a folder", "is no run folder")


@dataclass(frozen=True)
class Finding:
    """`where`: the file, with a line where one is known. `what`: group=option. `verdict`: fine, note or fault."""

    where: str
    what: str
    verdict: str
    line: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.line}"


def parse_key(line: str) -> str:
    """The full key that a line of a refused configuration begins with."""
    found = KEY_PATTERN.match(line)
    return found[0].rstrip(".") if found else ""


def classify_line(line: str) -> str:
    """A package or a file of another machine is not this option's fault."""
    return NOTE if "this package is not installed" in line or OTHER_MACHINE_FILE.search(line) else FAULT


def reports_missing_file(line: str) -> bool:
    """Whether a line says that a file is not there."""
    return any(words in line for words in MISSING_FILE_PHRASES)


def locate_key(path: Path, line: str) -> str:
    """The file, and the number of the line that sets the key that `line` begins with, where the file has one."""
    last = parse_key(line).rpartition(".")[2]
    setting = re.compile(rf"(^|[\s{{,]){re.escape(last)}\s*:")
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines() if last else []
    numbers = [number for number, row in enumerate(rows, 1) if setting.search(row.partition(" #")[0])]
    return f"{path}:{numbers[-1]}" if numbers else str(path)


def format_table(found: list[Finding]) -> list[str]:
    """Lines of a table: where, what, verdict, why."""
    rows = [("file", "option", "verdict", ""), *((one.where, one.what, one.verdict, one.line) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
