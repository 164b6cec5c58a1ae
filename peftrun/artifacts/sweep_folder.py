"""A sweep's summary on disk, and what a cell is called in it. Light."""

import shlex
from pathlib import Path

from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

SUMMARY_FILE = "sweep.json"


def format_cell_title(cell: Path) -> str:
    """What a cell is called among others: its id, and what was typed for it alone where its sweep tells."""
    try:
        told = atomic_files.read_json(cell.parent / SUMMARY_FILE)["cells"]
        commands = {one["id"]: shlex.split(one["command"]) for one in told}
        shared = set.intersection(*(set(words) for words in commands.values()))
        own = " ".join(word for word in commands[cell.name] if word not in shared)
    except (ArtifactError, KeyError, TypeError, ValueError):
        return f"cell {cell.name}"
    return f"cell {cell.name} ({own})" if own else f"cell {cell.name}"
