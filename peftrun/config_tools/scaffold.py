"""The files of a package of configs, made of what was typed. Light."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from omegaconf import OmegaConf

from peftrun.config import paths
from peftrun.config_tools import scaffold_texts
from peftrun.errors import ConfigError
from peftrun.system import versions

FIRST_VERSION = "0.1.0"
FILE_SLOTS = {  # keys that name a file of whoever types them → the slot that asks for it, and what it says there
    "task.data.path": ("rows", "the rows to learn from: csv, json, jsonl, parquet or txt"),
    "task.data.eval_path": ("held_out_rows", "rows held out, in a file of their own"),
}


@dataclass
class ExperimentDraft:
    """What an experiment says: options chosen, experiments built on, values, and slots with the values they had."""

    choices: dict[str, str] = field(default_factory=dict)
    experiments: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)


def render_package(name: str, typed: Sequence[str], own_rows: bool) -> dict[str, str]:
    """Path in the package's folder → text.

    Args: typed: overrides that the first experiment is to stand for. own_rows: whether rows are in files of whoever typed them.

    Raises: ConfigError: an override that no file can hold: a sweep, or one that takes a key away.
    """
    written = parse_overrides(typed)
    if own_rows:
        _replace_files_by_slots(written)
    parts = {"name": name, "version": FIRST_VERSION, "peftrun": versions.collect_versions()["peftrun"]}
    return {
        "pyproject.toml": scaffold_texts.PYPROJECT.substitute(parts),
        "README.md": scaffold_texts.README.substitute(parts, slots=_format_slots(written)),
        f"{name}/__init__.py": scaffold_texts.INIT.substitute(parts),
        f"{name}/experiment/{name}.yaml": render_experiment(name, written),
        f"{name}/experiment/{name}_rows.yaml": scaffold_texts.ROWS.substitute(parts),
        f"{name}/lora/{name}.yaml": scaffold_texts.LORA.substitute(parts),
    }


def parse_overrides(typed: Sequence[str]) -> ExperimentDraft:
    """What overrides say, in the terms of an experiment. Raises: ConfigError: see `files`."""
    found = ExperimentDraft()
    problems = [line for text in typed for line in _apply_override(found, text)]
    if problems:
        raise ConfigError(*problems)
    return found


def render_experiment(name: str, written: ExperimentDraft) -> str:
    """The YAML of the experiment that stands for what was typed."""
    defaults: list[Any] = [*written.experiments, "_self_"] if written.experiments else []
    defaults += [{f"override /{group}": option} for group, option in written.choices.items()]
    template = {"name": f"{name}/{name}", "version": FIRST_VERSION, "slots": _declare_slots(written)}
    body: dict[str, Any] = {"defaults": defaults} if defaults else {}
    body |= {"template": template} | ({"slots": written.slots} if written.slots else {}) | written.values
    return scaffold_texts.EXPERIMENT.substitute(
        name=name, slots=_format_slots(written), body=OmegaConf.to_yaml(OmegaConf.create(body))
    )


def _apply_override(found: ExperimentDraft, text: str) -> Iterator[str]:
    override = OverridesParser.create().parse_override(text)
    key, group = override.key_or_group, override.key_or_group.removeprefix("+")
    if override.is_delete() or override.is_sweep_override() or override.package:
        yield f"{text}: cannot stand in a file; omit it, and write what it means into the experiment by hand"
    elif group == "experiment":
        found.experiments = [str(override.value())]
    elif group in paths.GROUPS and not isinstance(override.value(), dict):
        found.choices[group] = str(override.value())
    else:
        _set_value(found.values, key.split("."), _strip_quotes(override.value()))


def _replace_files_by_slots(found: ExperimentDraft) -> None:
    """A file's name becomes a slot, whose value so far is that file."""
    data = found.values.get("task", {}).get("data", {})
    for key, (slot, _) in FILE_SLOTS.items():
        name = data.get(key.rpartition(".")[2])
        if isinstance(name, str) and "${" not in name:
            found.slots[slot] = name
            _set_value(found.values, key.split("."), f"${{slots.{slot}}}")


def _set_value(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _strip_quotes(value: Any) -> Any:
    """A value as YAML holds it: Hydra keeps the quotes of what was quoted."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_strip_quotes(one) for one in value]
    if isinstance(value, dict):
        return {_strip_quotes(key): _strip_quotes(one) for key, one in value.items()}
    return value


def _declare_slots(written: ExperimentDraft) -> dict[str, Any]:
    helps = dict(FILE_SLOTS.values())
    return {name: {"type": "path", "help": helps[name]} for name in written.slots}


def _format_slots(written: ExperimentDraft) -> str:
    return "".join(f" slots.{name}={value}" for name, value in written.slots.items())
