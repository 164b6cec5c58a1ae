"""Prompts from a file: one per line, or JSON rows that may each name the adapter to answer with."""

import json
from dataclasses import dataclass
from typing import Any

from peftrun.artifacts import remote_files
from peftrun.errors import DataError

BASE_ADAPTER_NAME = "base"  # in a row's `adapter`: the base model without any adapter
NAMED_ROWS = 3  # of the rows with the same problem
PROMPT_KEYS = {"prompt", "adapter", "tools"}


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        content: a text, or the messages of a conversation.
        adapter: a loaded adapter, `BASE_ADAPTER_NAME`, or None for the active one.
        tools: that the model may call.
    """

    content: str | list[dict[str, Any]]
    adapter: str | None = None
    tools: Any = None


def read_prompts(path: str, adapters: dict[str, str]) -> list[Prompt]:
    """The prompts in a text file, or in a .jsonl file of `{"prompt": TEXT or [{role, content}, …], "adapter": …, "tools": […]}`.

    Raises: DataError: not UTF-8, no prompt, or one line for each reason why rows are no such object or name an adapter that is not loaded.
    """
    try:  # split by line feeds alone: splitlines would also split at U+2028, which a prompt may hold
        file = remote_files.locate_file(path, f"action.prompts_file={path}")
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"action.prompts_file={path}: cannot be read ({error}); save it as UTF-8") from error
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"action.prompts_file={path}: holds no prompt; write one a line")
    if file.suffix.lower() != ".jsonl":
        return [Prompt(line) for _, line in rows]
    problems: dict[str, list[int]] = {}
    for number, line in rows:
        for problem in _check_row(line, adapters):
            problems.setdefault(problem, []).append(number)
    if problems:
        found = (f"{_format_rows(numbers)}: {problem}" for problem, numbers in problems.items())
        raise DataError(*(f"action.prompts_file={path}: {problem}" for problem in found))
    objects = [json.loads(line) for _, line in rows]
    return [Prompt(row["prompt"], row.get("adapter"), row.get("tools")) for row in objects]


def _format_rows(numbers: list[int]) -> str:
    named = ", ".join(map(str, numbers[:NAMED_ROWS]))
    others = len(numbers) - NAMED_ROWS
    return f"row{'s' if len(numbers) > 1 else ''} {named}{f' and {others} others' if others > 0 else ''}"


def _check_row(line: str, adapters: dict[str, str]) -> list[str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        return [f'is not JSON ({error}); write {{"prompt": "…"}}']
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not prompt or not (prompt.strip() if isinstance(prompt, str) else isinstance(prompt, list)):
        return ['must be an object with a text or messages under prompt; write {"prompt": "…"}']
    problems = [f"{key} is none of prompt, adapter and tools; remove it" for key in row if key not in PROMPT_KEYS]
    name = row.get("adapter")
    if name is not None and name != BASE_ADAPTER_NAME and name not in adapters:
        problems.append(f"adapter={name} is not given; given: {', '.join([*adapters, BASE_ADAPTER_NAME])}")
    return problems
