"""A sweep's summary file, and the titles of its cells. Light."""

import shlex
from pathlib import Path

from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

SUMMARY_FILE = "sweep.json"


def format_cell_title(cell: Path) -> str:
    """A cell's title: its id, and those of its overrides that not all cells of the sweep have."""
    try:
        cells = atomic_files.read_json(cell.parent / SUMMARY_FILE)["cells"]
        commands = {row["id"]: shlex.split(row["command"]) for row in cells}
        shared = set.intersection(*(set(words) for words in commands.values()))
        overrides = " ".join(word for word in commands[cell.name] if word not in shared)
    except (ArtifactError, KeyError, TypeError, ValueError):  # no summary yet, or of an unknown form
        return f"cell {cell.name}"
    return f"cell {cell.name} ({overrides})" if overrides else f"cell {cell.name}"
