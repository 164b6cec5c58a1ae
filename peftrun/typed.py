"""What is typed, as Hydra is to read it: `action.` may be left out before a key that the chosen action alone has. Light.

`peftrun action=replay run=FOLDER` is `peftrun action=replay action.run=FOLDER`; records and messages know the full form alone.
"""

import re
from collections.abc import Sequence
from typing import get_args, get_type_hints

from peftrun.paths import GROUPS

TOP_LEVEL = (*GROUPS, "seed", "adapter", "active", "allow_base_mismatch", "slots", "template")
SHORT = re.compile(r"([A-Za-z_]\w*)=")
DEFAULT_ACTION = "train"


def in_full(typed: Sequence[str]) -> list[str]:
    """The same command with the full name of every key."""
    asked = [found for text in typed if (found := SHORT.match(text)) and found[1] not in TOP_LEVEL]
    if not asked:
        return list(typed)
    known = _keys(_action(typed))
    return [f"action.{text}" if (one := SHORT.match(text)) and one[1] in known else text for text in typed]


def _action(typed: Sequence[str]) -> str:
    chosen = [text.partition("=")[2] for text in typed if text.startswith("action=")]
    return chosen[-1].split(",")[0] if chosen else DEFAULT_ACTION


def _keys(action: str) -> set[str]:
    """Keys of an action that mean nothing else."""
    from peftrun import action_specs

    for kind in get_args(get_args(action_specs.Action)[0]):
        hints = get_type_hints(kind)
        if action in get_args(hints["name"]):
            return hints.keys() - {"name", *TOP_LEVEL}
    return set()
