"""Everything a page says about one training run, from the run folder's own files. Light, and content with a run that failed or goes on."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from peftrun.artifacts import run_overrides
from peftrun.artifacts.run_layout import ADAPTER, CONFIG, PEFTRUN_METADATA, RECORD
from peftrun.config import values as config
from peftrun.config.paths import GROUPS
from peftrun.errors import ArtifactError
from peftrun.formatting import is_number
from peftrun.io import atomic_files
from peftrun.results.report import html

Values = dict[str, Any]
Found = TypeVar("Found")


@dataclass(frozen=True)
class RunFacts:
    """One run.

    Attributes:
        record: what record.json holds; empty where it cannot be read.
        values: the resolved config in today's keys; empty where there is none.
        rows: of metrics.jsonl, in their order.
        made: what peftrun.json says of the adapter; empty where none was saved.
        typed: the overrides that were asked for; empty where the run was not composed.
        choices: group → the option that was chosen; empty likewise.
        places: where options were looked for beside peftrun's own.
    """

    folder: Path
    record: Values
    values: Values
    rows: list[Values]
    made: Values
    typed: list[str]
    choices: dict[str, str]
    places: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """running, completed, stopped, interrupted, failed; unknown without a record."""
        return str(self.record.get("status", "unknown"))

    @property
    def task(self) -> str:
        """The task's name, or what kind it is and the name of its data."""
        data = get_mapping(self.values, "task.data")
        described = f"{get_mapping(self.values, 'task').get('kind', 'task')} on {Path(str(data.get('path', '?'))).name}"
        return self.choices.get("task") or described

    @property
    def base(self) -> str:
        """The base's name: as recorded, or as asked for."""
        model = get_mapping(self.values, "model")
        asked_for = [str(model[key]) for key in ("package", "name_or_path") if model.get(key)]
        return str(get_mapping(self.record, "base").get("name") or ":".join(asked_for) or "a base")

    @property
    def lora(self) -> Values:
        """The method's settings."""
        return get_mapping(self.values, "lora")

    @property
    def before(self) -> dict[str, float]:
        """Figures on held-out rows before training; empty where they were not measured."""
        return _select_figures(get_mapping(self.record, "metrics").get("before"))

    @property
    def after(self) -> dict[str, float]:
        """The same after training."""
        return _select_figures(get_mapping(self.record, "metrics").get("after"))


def read_run_facts(folder: Path) -> RunFacts:
    """What is known of the run in `folder`; what is missing or damaged there is empty.

    Raises: ArtifactError: there is neither a record nor a config.
    """
    names = (RECORD, CONFIG)
    if not any((folder / name).is_file() for name in names):
        raise ArtifactError(f"{folder}: is no run folder (no {RECORD}); name one below outputs")
    nothing: list[str] = []
    typed = _read_or_default(lambda: run_overrides.read_typed_overrides(folder), nothing)
    return RunFacts(
        folder,
        _read_or_default(lambda: atomic_files.read_json(folder / RECORD), {}),
        _read_or_default(lambda: config.read_run(folder / CONFIG, aloud=False), {}),
        html.read_metrics(folder),
        _read_or_default(lambda: atomic_files.read_json(folder / ADAPTER / PEFTRUN_METADATA), {}),
        typed,
        _read_or_default(lambda: _read_choices(folder), {}) or _parse_choices(typed),
        _read_or_default(lambda: run_overrides.read_config_places(folder), nothing),
    )


def get_mapping(values: Values, key: str) -> Values:
    """The mapping under a dotted key; an empty one where there is none."""
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def get_list(values: Values, key: str) -> list[Any]:
    """The list under a key; an empty one where there is none."""
    found = values.get(key)
    return found if isinstance(found, list) else []


def _parse_choices(typed: list[str]) -> dict[str, str]:
    """Options of groups among what was typed."""
    pairs = (text.partition("=") for text in typed)
    return {group: option for group, _, option in pairs if group in GROUPS}


def _read_choices(folder: Path) -> dict[str, str]:
    own = folder / run_overrides.HYDRA_DIR / run_overrides.HYDRA_FILE
    found = get_mapping(config.read_values(own), "hydra.runtime.choices") if own.is_file() else {}
    return {str(group): str(option) for group, option in found.items() if option is not None and "/" not in str(group)}


def _read_or_default(look: Callable[[], Found], otherwise: Found) -> Found:
    with suppress(Exception):  # whatever is wrong with a file, the page says what the others tell
        return look()
    return otherwise


def _select_figures(found: Any) -> dict[str, float]:
    return {str(key): value for key, value in found.items() if is_number(value)} if isinstance(found, dict) else {}
