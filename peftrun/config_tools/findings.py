"""Findings of action=check on an option, and their severity. Light."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftrun import formatting
from peftrun.config import migrations

FINE, NOTE, FAULT = "fine", "note", "fault"
KEY_PATTERN = re.compile(r"[\w.]+")
OTHER_MACHINE_FILE = re.compile(r"=(/|~)[^:]*: there is no such")  # an absolute path, which may exist elsewhere
MISSING_FILE_PHRASES = ("there is no such", "is not a folder", "is no run folder", "is not a run folder")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        where: the file, with `:LINE` if the line is known.
        what: group=option.
        verdict: `fine`, `note` or `fault`.
        line: the message, empty if fine.
    """

    where: str
    what: str
    verdict: str
    line: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For record.json."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.line}"


def parse_key(line: str) -> str:
    """The full key at the beginning of an error message."""
    match = KEY_PATTERN.match(line)
    return match[0].rstrip(".") if match else ""


def classify_line(line: str) -> str:
    """The verdict on an error message: a missing package or a file of another machine is not the option's fault."""
    return NOTE if "this package is not installed" in line or OTHER_MACHINE_FILE.search(line) else FAULT


def reports_missing_file(line: str) -> bool:
    """Whether the message says that a file or folder is missing."""
    return any(phrase in line for phrase in MISSING_FILE_PHRASES)


def locate_key(path: Path, line: str) -> str:
    """`FILE:LINE` of the key that the message begins with, or just the file if it does not set that key."""
    keys = [key, *migrations.list_old_keys(key)] if (key := parse_key(line)) else []
    names = "|".join(re.escape(name.rpartition(".")[2]) for name in keys)
    setting = re.compile(rf"(^|[\s{{,])({names})\s*:")
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines() if keys else []
    # Only the last part of the key is searched, so of several lines the last is taken; comments do not count.
    numbers = [number for number, row in enumerate(rows, 1) if setting.search(row.partition(" #")[0])]
    return f"{path}:{numbers[-1]}" if numbers else str(path)


def format_table(results: list[Finding]) -> list[str]:
    """Lines of a table: where, what, verdict, message."""
    rows = [("file", "option", "verdict", ""), *((row.where, row.what, row.verdict, row.line) for row in results)]
    return formatting.align_rows(rows)
