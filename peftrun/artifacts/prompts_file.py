"""Prompts from a file: one a line, or JSON rows that may each name the adapter that is to answer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.errors import DataError

BASE_ADAPTER_NAME = "base"  # the name under which a row asks for the base without any adapter
PROMPT_KEYS = {"prompt", "adapter", "tools"}


@dataclass(frozen=True)
class Prompt:
    """`said`: a text, or the messages of a conversation. `adapter`: who is to answer: a loaded adapter, `BASE`, or None for the active one."""

    said: str | list[dict[str, Any]]
    adapter: str | None = None
    tools: Any = None  # that may be called in it


def read_prompts(path: str, adapters: dict[str, str]) -> list[Prompt]:
    """The prompts in a text file, or in a .jsonl file of `{"prompt": TEXT or [{role, content}, …], "adapter": …, "tools": […]}`. A line ends with a line feed alone.

    Raises: DataError: it is not UTF-8; no prompt; a row that is no such object, or that names an adapter which is not given; one line each.
    """
    rows = [(number, line.strip()) for number, line in enumerate(_read_lines(path), 1) if line.strip()]
    if not rows:
        raise DataError(f"action.prompts_file={path}: holds no prompt; write one a line")
    if Path(path).suffix.lower() != ".jsonl":
        return [Prompt(line) for _, line in rows]
    problems = [
        f"action.prompts_file={path}: row {number}: {said}"
        for number, line in rows
        for said in _check_row(line, adapters)
    ]
    if problems:
        raise DataError(*problems)
    found = [json.loads(line) for _, line in rows]
    return [Prompt(row["prompt"], row.get("adapter"), row.get("tools")) for row in found]


def _read_lines(path: str) -> list[str]:
    """What lies between line feeds: nothing else ends a line, such as U+2028, which may stand in a prompt."""
    try:
        return Path(path).expanduser().read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"action.prompts_file={path}: cannot be read ({error}); save it as UTF-8") from error


def _check_row(line: str, adapters: dict[str, str]) -> list[str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        return [f'is not JSON ({error}); write {{"prompt": "…"}}']
    said = row.get("prompt") if isinstance(row, dict) else None
    if not said or not (said.strip() if isinstance(said, str) else isinstance(said, list)):
        return ['must be an object with a text or messages under prompt; write {"prompt": "…"}']
    found = [f"{key} is none of prompt, adapter and tools; remove it" for key in row if key not in PROMPT_KEYS]
    name = row.get("adapter")
    if name is not None and name != BASE_ADAPTER_NAME and name not in adapters:
        found.append(f"adapter={name} is not given; given: {', '.join([*adapters, BASE_ADAPTER_NAME])}")
    return found
