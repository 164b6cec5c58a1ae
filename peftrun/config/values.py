"""Configurations as plain values: read from files, resolve, flatten, write. Light."""

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from peftrun.config import migrations, template_params
from peftrun.config.template_params import MISSING
from peftrun.config.yaml_files import load_plain
from peftrun.errors import ArtifactError, ConfigError
from peftrun.system import packages

if TYPE_CHECKING:  # a tenth of a second, which `--cfg job` need not wait for
    from peftrun.config.schema.run import RunSpec

_REPORTED: set[str] = set()


def read_values(path: Path) -> dict[str, Any]:
    """Plain nested values of a saved `config.yaml`, unchanged, even if older than this version's schema. `read_run` upgrades them.

    Raises: ArtifactError: it is not valid YAML.
    """
    return _read_yaml(path)


def read_run(path: Path, report_changes: bool = True) -> dict[str, Any]:
    """Plain nested values of a run's `config.yaml` in today's keys. `report_changes`: print what was upgraded; False where many runs are read."""
    values, lines = migrations.upgrade_values(read_values(path))
    report_upgrades([f"{path}: {line}" for line in lines] if report_changes else [])
    return values


def mark_reported(lines: Iterable[str]) -> None:
    """Lines that `report_upgrades` need not print, since the caller does."""
    _REPORTED.update(lines)


def report_upgrades(lines: Iterable[str], file: str = "") -> None:
    """Print each line, once per process: a configuration is read many times. `file`: the file with the old name, printed in front."""
    for line in lines:
        if line not in _REPORTED:
            from peftrun import console  # imports rich, which few commands need

            _REPORTED.add(line)
            console.print_info(f"{file}: {line}" if file else line)


def read_list(path: Path) -> list[Any]:
    """A saved list, such as Hydra's list of typed overrides. Raises: ArtifactError: it is not valid YAML."""
    return list(_read_yaml(path))


def _read_yaml(path: Path) -> Any:
    try:
        return load_plain(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: is not readable YAML ({' '.join(str(error).split())}); restore it") from error


def to_yaml(spec: "RunSpec") -> str:
    """The resolved configuration as YAML that `read_values` reads back."""
    return values_to_yaml(dataclasses.asdict(spec))


def values_to_yaml(values: dict[str, Any] | list[Any]) -> str:
    """Plain nested values as YAML that `read_values` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(values))


def flatten_keys(values: Any, prefix: str = "") -> dict[str, Any]:
    """Full dotted key → value of every leaf of nested mappings."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    leaves = (flatten_keys(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in values.items())
    return {key: item for leaf in leaves for key, item in leaf.items()}


def take_value(target: dict[str, Any], source: dict[str, Any], names: Sequence[str]) -> None:
    """Give a nested key of `target` its value in `source`. If it has none there (removed with ~key), it is removed."""
    *parents, last = names
    for name in parents:
        child, source = target.get(name), source.get(name) or {}
        target[name] = child if isinstance(child, dict) else {}
        target = target[name]
    if last in source:
        target[last] = source[last]
    else:
        target.pop(last, None)


def resolve_values(cfg: DictConfig) -> dict[str, Any]:
    """Plain nested values in today's keys, interpolations resolved, `adapter` normalized to a mapping name → path.

    Raises: ConfigError: an interpolation cannot be resolved.
    """
    # Keys that read an unset template parameter have no value yet; the check of the parameters reports them.
    unset_keys = template_params.find_unset_keys(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    if unset_keys:
        cfg = copy.deepcopy(cfg)
        for key in unset_keys:
            OmegaConf.update(cfg, key, MISSING)
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{error.full_key or 'config'}: {str(error).splitlines()[0]}; fix the interpolation"
        ) from error
    assert isinstance(values, dict)
    adapter = values.get("adapter")
    values["adapter"] = {} if adapter is None else {"default": adapter} if isinstance(adapter, str) else adapter
    renamed, lines = migrations.rename_keys(template_params.mark_missing(values, unset_keys))  # type: ignore[arg-type]
    report_upgrades(lines)
    return packages.prefer_user_files(renamed)
