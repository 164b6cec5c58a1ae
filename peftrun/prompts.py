"""Prompts from a file: one a line, or JSON rows that may each name the adapter that is to answer."""

import json
from dataclasses import dataclass
from pathlib import Path

from peftrun.errors import DataError

BASE = "base"  # the name under which a row asks for the base without any adapter
KEYS = {"prompt", "adapter"}


@dataclass(frozen=True)
class Prompt:
    """`adapter`: who is to answer: a loaded adapter, `BASE`, or None for the active one."""

    text: str
    adapter: str | None = None


def read(path: str, adapters: dict[str, str]) -> list[Prompt]:
    """The prompts in a text file, or in a .jsonl file of `{"prompt": …, "adapter": …}`.

    Raises: DataError: it is not UTF-8; no prompt; a row that is no such object, or that names an adapter which is not given; one line each.
    """
    rows = [(number, line.strip()) for number, line in enumerate(_lines(path), 1) if line.strip()]
    if not rows:
        raise DataError(f"action.prompts_file={path}: holds no prompt; write one a line")
    if Path(path).suffix.lower() != ".jsonl":
        return [Prompt(line) for _, line in rows]
    problems = [
        f"action.prompts_file={path}: row {number}: {said}" for number, line in rows for said in _wrong(line, adapters)
    ]
    if problems:
        raise DataError(*problems)
    found = [json.loads(line) for _, line in rows]
    return [Prompt(row["prompt"], row.get("adapter")) for row in found]


def _lines(path: str) -> list[str]:
    """What lies between line feeds: nothing else ends a line, such as U+2028, which may stand in a prompt."""
    try:
        return Path(path).expanduser().read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"action.prompts_file={path}: cannot be read ({error}); save it as UTF-8") from error


def _wrong(line: str, adapters: dict[str, str]) -> list[str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        return [f'is not JSON ({error}); write {{"prompt": "…"}}']
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        return ['must be an object with a text under prompt; write {"prompt": "…"}']
    found = [f"{key} is neither prompt nor adapter; remove it" for key in row if key not in KEYS]
    name = row.get("adapter")
    if name is not None and name != BASE and name not in adapters:
        found.append(f"adapter={name} is not given; given: {', '.join([*adapters, BASE])}")
    return found
