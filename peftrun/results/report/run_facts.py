"""Everything the report says about a training run, from the run folder's files; works for failed and running runs too. Light."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from peftrun.artifacts import records, run_overrides
from peftrun.artifacts.run_layout import ADAPTER, CONFIG, RECORD
from peftrun.config import migrations
from peftrun.config import values as config
from peftrun.config.paths import GROUPS
from peftrun.errors import ArtifactError
from peftrun.formatting import is_number
from peftrun.results.report import html

Values = dict[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True)
class RunFacts:
    """One training run.

    Attributes:
        record: content of record.json; empty if it cannot be read.
        values: the resolved config in today's keys; empty if there is none.
        rows: rows of metrics.jsonl, in their order.
        made: content of the adapter's peftrun.json; empty if none was saved.
        typed: the overrides of the command line; empty for a run from Python.
        choices: group → chosen option; empty for a run from Python.
        places: search path of options besides peftrun's own.
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
        """The chosen task, else its type and the name of its data file."""
        data = get_mapping(self.values, "task.data")
        description = (
            f"{get_mapping(self.values, 'task').get('type', 'task')} on {Path(str(data.get('path', '?'))).name}"
        )
        return self.choices.get("task") or description

    @property
    def base(self) -> str:
        """Name of the base model as recorded, else as configured."""
        model = get_mapping(self.values, "model")
        configured = [str(model[key]) for key in ("package", "name_or_path") if model.get(key)]
        return str(get_mapping(self.record, "base").get("name") or ":".join(configured) or "a base")

    @property
    def lora(self) -> Values:
        """Settings of the adapter method."""
        return get_mapping(self.values, "lora")

    @property
    def before(self) -> dict[str, float]:
        """Metrics on evaluation rows before training; empty if not measured."""
        return _select_figures(get_mapping(self.record, "metrics").get("before"))

    @property
    def after(self) -> dict[str, float]:
        """The same after training."""
        return _select_figures(get_mapping(self.record, "metrics").get("after"))


def read_run_facts(folder: Path) -> RunFacts:
    """The facts of the run in `folder`; missing or damaged files give empty values.

    Raises: ArtifactError: the folder holds neither a record nor a config.
    """
    if not any((folder / name).is_file() for name in (RECORD, CONFIG)):
        raise ArtifactError(f"{folder}: is no run folder (no {RECORD}); name one below outputs")
    typed: list[str] = _read_or_default(lambda: run_overrides.read_typed_overrides(folder), [])
    return RunFacts(
        folder,
        _read_or_default(lambda: records.read_record(folder), {}),
        _read_or_default(lambda: config.read_run(folder / CONFIG, report_changes=False), {}),
        html.read_metrics(folder),
        _read_or_default(lambda: records.read_metadata(folder / ADAPTER), {}),
        typed,
        _read_or_default(lambda: _read_choices(folder), {})
        # A copied run folder may lack Hydra's notes.
        or {group: option for group, _, option in (text.partition("=") for text in typed) if group in GROUPS},
        _read_or_default(lambda: run_overrides.read_config_places(folder), []),
    )


def get_mapping(values: Values, key: str) -> Values:
    """The mapping under a dotted key; empty if there is none."""
    value: Any = values
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def get_list(values: Values, key: str) -> list[Any]:
    """The list under a key; empty if there is none."""
    value = values.get(key)
    return value if isinstance(value, list) else []


def _read_choices(folder: Path) -> dict[str, str]:
    """Group → chosen option, as Hydra noted it; its own groups such as hydra/launcher are left out."""
    file = folder / run_overrides.HYDRA_DIR / run_overrides.HYDRA_FILE
    choices = get_mapping(config.read_values(file), "hydra.runtime.choices") if file.is_file() else {}
    return {
        str(group): migrations.rename_option(str(group), str(option))
        for group, option in choices.items()
        if option is not None and "/" not in str(group)
    }


def _read_or_default(read: Callable[[], Result], default: Result) -> Result:
    with suppress(Exception):  # a file may be damaged in any way, and the page shows what the others hold
        return read()
    return default


def _select_figures(metrics: Any) -> dict[str, float]:
    return {str(key): value for key, value in metrics.items() if is_number(value)} if isinstance(metrics, dict) else {}
