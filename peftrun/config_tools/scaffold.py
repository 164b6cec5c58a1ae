"""Renders the files of a config package whose first experiment holds the typed overrides. Light."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from peftrun.config import paths
from peftrun.config.override_syntax import strip_quotes
from peftrun.config_tools import scaffold_texts
from peftrun.errors import ConfigError
from peftrun.system import versions

FIRST_VERSION = "0.1.0"
# Keys that name a file of the user's machine → the parameter that replaces it, and the parameter's help.
FILE_PARAMS = {
    "task.data.path": ("rows", "training rows: csv, json, jsonl, parquet or txt"),
    "task.data.test_path": ("test_rows", "evaluation rows, in a file of their own"),
}


@dataclass
class ExperimentDraft:
    """The contents of an experiment.

    Attributes:
        choices: group → option.
        experiments: experiments that it is based on.
        values: nested mapping of the keys that it sets.
        params: name → value so far.
    """

    choices: dict[str, str] = field(default_factory=dict)
    experiments: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)


def render_package(name: str, typed: Sequence[str], own_rows: bool) -> dict[str, str]:
    """Path in the package's folder → text.

    Args: typed: overrides of the first experiment. own_rows: whether rows are read from the user's own files.

    Raises: ConfigError: an override that a file cannot express: a sweep, or the deletion of a key.
    """
    draft = parse_overrides(typed)
    if own_rows:
        # A file of this machine becomes a parameter, with the file as its value so far.
        data = draft.values.get("task", {}).get("data", {})
        for key, (param, _) in FILE_PARAMS.items():
            path = data.get(key.rpartition(".")[2])
            if isinstance(path, str) and "${" not in path:
                draft.params[param] = path
                _set_value(draft.values, key.split("."), f"${{params.{param}}}")
    parts = {"name": name, "version": FIRST_VERSION, "peftrun": versions.collect_versions()["peftrun"]}
    return {
        "pyproject.toml": scaffold_texts.PYPROJECT.substitute(parts),
        "README.md": scaffold_texts.README.substitute(parts, params=_format_params(draft)),
        f"{name}/__init__.py": scaffold_texts.INIT.substitute(parts),
        f"{name}/experiment/{name}.yaml": render_experiment(name, draft),
        f"{name}/experiment/{name}_rows.yaml": scaffold_texts.ROWS.substitute(parts),
        f"{name}/lora/{name}.yaml": scaffold_texts.LORA.substitute(parts),
    }


def parse_overrides(typed: Sequence[str]) -> ExperimentDraft:
    """The experiment that the overrides amount to. Raises: ConfigError: see `render_package`."""
    draft, problems = ExperimentDraft(), []
    for text in typed:
        override = OverridesParser.create().parse_override(text)
        key, group = override.key_or_group, override.key_or_group.removeprefix("+")
        if override.is_delete() or override.is_sweep_override() or override.package:
            problems.append(f"{text}: cannot be written to a file; omit it, and edit the experiment by hand")
        elif group == "experiment":  # an experiment is based on others by listing them in its defaults
            draft.experiments = [str(override.value())]
        elif group in paths.GROUPS and not isinstance(override.value(), dict):
            draft.choices[group] = str(override.value())
        else:
            _set_value(draft.values, key.split("."), strip_quotes(override.value()))
    if problems:
        raise ConfigError(*problems)
    return draft


def render_experiment(name: str, draft: ExperimentDraft) -> str:
    """The experiment as YAML, as a template with its parameters declared."""
    defaults: list[Any] = [*draft.experiments, "_self_"] if draft.experiments else []
    defaults += [{f"override /{group}": option} for group, option in draft.choices.items()]
    helps = dict(FILE_PARAMS.values())  # parameter → help
    declared = {param: {"type": "path", "help": helps[param]} for param in draft.params}
    template = {"name": f"{name}/{name}", "version": FIRST_VERSION, "params": declared}
    body: dict[str, Any] = {"defaults": defaults} if defaults else {}
    body |= {"template": template} | ({"params": draft.params} if draft.params else {}) | draft.values
    return scaffold_texts.EXPERIMENT.substitute(
        name=name, params=_format_params(draft), body=OmegaConf.to_yaml(OmegaConf.create(body))
    )


def _set_value(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _format_params(draft: ExperimentDraft) -> str:
    return "".join(f" params.{name}={value}" for name, value in draft.params.items())
