"""Files of teams with old names of keys and options: Hydra reads them in today's names.

What Hydra has read of a file is renamed before it is composed, so that a typed key or a later file wins over an old name as it does
over today's.
"""

import re
from typing import Any

from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from peftrun.config import migrations, paths
from peftrun.config import values as config

GLOBAL = "_global_"
DEFAULT_GROUP = re.compile(r"(?P<words>(?:(?:override|optional) +)*)(?P<group>[^@ ]+)(?P<package>@.*)?")


def rename_loaded(loaded: ConfigResult, config_path: str) -> ConfigResult:
    """What Hydra has read of a file, in today's names; each old one is reported. peftrun's own files and Hydra's have none."""
    is_own = loaded.provider == "hydra" or loaded.path == f"file://{paths.config_dir()}"
    if is_own or not isinstance(loaded.config, DictConfig):
        return loaded
    name = config_path.removesuffix(".yaml")
    group = name.rpartition("/")[0]
    package = (loaded.header.get("package") or group).replace("_group_", group).replace("/", ".")
    values: Any = OmegaConf.to_container(loaded.config)
    renamed, lines = rename_file(values, group, "" if package == GLOBAL else package)
    if lines:
        loaded.config = OmegaConf.create(renamed)
        config.report_upgrades(lines, f"{loaded.path.removeprefix('file://')}/{name}.yaml")
    return loaded


def rename_file(values: dict[str, Any], group: str, package: str) -> tuple[dict[str, Any], list[str]]:
    """The content of a file in today's names, and a line for each old one.

    Args: package: full key of the mapping that the file fills; empty: the root.
    """
    values = dict(values)
    defaults, lines = _rename_defaults(values.pop("defaults", None), group)
    nested: Any = values
    for name in reversed(package.split(".") if package else []):
        nested = {name: nested}
    renamed, key_lines = migrations.rename_keys(nested)
    lines += key_lines
    content = _rename_references(renamed, "", lines)
    for name in package.split(".") if package else ():
        content = content.get(name, {})
    return ({} if defaults is None else {"defaults": defaults}) | content, list(dict.fromkeys(lines))


def _rename_references(node: Any, owner: str, lines: list[str]) -> Any:
    """The nested values with today's keys in their interpolations. `owner`: full key of the mapping that holds `node`."""
    if isinstance(node, dict):
        return {
            key: _rename_references(item, _join(owner, key) if isinstance(item, dict | list) else owner, lines)
            for key, item in node.items()
        }
    if isinstance(node, list):
        return [_rename_references(item, owner, lines) for item in node]
    if not isinstance(node, str):
        return node
    text, found = migrations.rename_references(node, owner)
    lines += found
    return text


def _join(owner: str, key: Any) -> str:
    return f"{owner}.{key}" if owner else str(key)


def _rename_defaults(defaults: Any, group: str) -> tuple[Any, list[str]]:
    """A defaults list with today's options, and a line for each old one."""
    if not isinstance(defaults, list):
        return defaults, []
    lines: list[str] = []
    return [_rename_default(entry, group, lines) for entry in defaults], lines


def _rename_default(entry: Any, group: str, lines: list[str]) -> Any:
    """An entry: `option`, `/group/option`, `{group: option}`, `{override /group: [option, …]}`; others unchanged."""
    if isinstance(entry, str):
        path, at, package = entry.partition("@")
        chosen, slash, option = path.rpartition("/")
        return f"{chosen}{slash}{_rename_option(_absolute(chosen or slash, group), option, lines)}{at}{package}"
    if not isinstance(entry, dict) or len(entry) != 1:
        return entry
    [(key, options)] = entry.items()
    match = DEFAULT_GROUP.fullmatch(str(key))
    if match is None:
        return entry
    chosen = _absolute(match["group"], group)
    if isinstance(options, list):
        return {key: [_rename_option(chosen, option, lines) for option in options]}
    return {key: _rename_option(chosen, options, lines)}


def _absolute(chosen: str, group: str) -> str:
    """The full name of a group in a defaults list: one without a leading slash is below the file's own group."""
    return chosen.strip("/") if chosen.startswith("/") else f"{group}/{chosen}".strip("/")


def _rename_option(group: str, option: Any, lines: list[str]) -> Any:
    if (group, option) not in migrations.RENAMED_OPTIONS:
        return option
    lines.append(migrations.format_renamed_option(group, option))
    return migrations.rename_option(group, option)
