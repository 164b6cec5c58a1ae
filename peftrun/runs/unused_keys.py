"""Find config keys that were set but that the run did not use. Light."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.checks.unknown_keys import SELECTOR_KEYS
from peftrun.composition.spec import get_default_values
from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec

# Actions on the config of another run.
INSPECTING = ("plan", "preview", "replay", "explain", "template", "import", "check")
TOP_LEVEL_KEYS = ("adapter", "active_adapter", "seed")  # that are no groups
TEMPLATES = ("params", "template")  # read during composition


def find_unused_keys(spec: RunSpec, out_dir: Path, unread: Sequence[str]) -> list[str]:
    """`key=value` of unread keys that were set: in a training by an override or an option, in other actions by an override of that key.

    The commands that peftrun suggests for other actions repeat the options of the training, which need not all be used there.
    """
    if spec.action.name in INSPECTING:
        return []
    values = config.flatten_keys(dataclasses.asdict(spec))
    unused = [
        key
        for key in unread
        if key not in SELECTOR_KEYS
        and key.split(".")[0] not in TEMPLATES
        # null, false and empty values ask for nothing; 0 may.
        and not (values[key] is None or values[key] is False or values[key] in ("", [], {}))
    ]
    trackers = []
    if spec.action.name == "train":
        defaults = config.flatten_keys(get_default_values())
        unused = [key for key in unused if values[key] != defaults.get(key)]
    else:
        typed = {text.lstrip("+~").partition("=")[0] for text in run_overrides.read_overrides(out_dir)}
        prefixes = [key for key in typed if "." in key or key in TOP_LEVEL_KEYS]
        unused = [key for key in unused if any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)]
        # Only trainings report to a tracker, and no suggested command selects one.
        if "tracker" in typed and spec.tracker.name != "none":
            trackers = [override_syntax.quote_override("tracker", spec.tracker.name)]
    return trackers + [override_syntax.quote_override(key, values[key]) for key in unused]


def warn_unused(lines: Iterable[str]) -> None:
    """Print one warning that names all unused keys, if there are any."""
    keys = list(dict.fromkeys(lines))
    if keys:
        verb = "was" if len(keys) == 1 else "were"
        console.print_warning(f"{', '.join(keys)} {verb} set but not used by this run")
