"""Reads a config of another tool, and finds out which tool's it is. Light."""

import json
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from peftrun.config import paths, yaml_files
from peftrun.config.peers import tables
from peftrun.config_tools.peer_import import shell_scripts
from peftrun.config_tools.peer_import.translation import PeerConfig
from peftrun.errors import DataError

ADAPTER_CONFIG, TRAINING_PARAMS = "adapter_config.json", "training_params.json"
NESTED = ("trl", "peft", "optimizer_kwargs", "loftq_config")  # mappings whose keys have rows of their own
KEY = "action.source"


def read_peer_config(path: Path, tool: str | None) -> PeerConfig:
    """The config in a YAML or JSON file, a shell script, or a folder with an adapter_config.json. `tool`: None: by its keys.

    Raises: DataError: it cannot be read, or is of no known tool.
    """
    path = path / ADAPTER_CONFIG if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{KEY}={path}: {paths.no_file(str(path))}; name a config of {format_tools()}")
    command = ""
    if path.suffix in (".yaml", ".yml", ".json"):
        keys = _read_mapping(path)
    else:
        script = shell_scripts.read_script(path)
        keys, tool, command = script.keys, tool or script.tool, script.command
        for file in script.files:
            keys = _read_mapping(_find_beside(file, path)) | keys
    if path.name == ADAPTER_CONFIG and (path.parent / TRAINING_PARAMS).is_file():
        keys |= _read_mapping(path.parent / TRAINING_PARAMS)
    return PeerConfig(tool or detect_tool(keys, path), path, _join_nested(keys), command)


def detect_tool(keys: dict[str, Any], path: Path) -> str:
    """The tool whose marks the most keys are. Raises: DataError: none, or several have as many."""
    marks = {tool: len({*tables.read_table(tool).marks} & {*keys}) for tool in tables.TOOLS}
    best = max(marks.values())
    found = [tool for tool, count in marks.items() if count == best]
    if best < 2 or len(found) > 1:
        raise DataError(
            f"{KEY}={path}: its keys are of no known tool, or of several; name it: action.tool={'|'.join(tables.TOOLS)}"
        )
    return found[0]


def format_tools() -> str:
    """Names of the tools, for messages."""
    return ", ".join(tables.read_table(tool).title for tool in tables.TOOLS)


def _find_beside(file: Path, script: Path) -> Path:
    """A file that a script names, from the current folder or from that of the script and those above it."""
    places = [file, *(folder / file for folder in script.absolute().parents)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(f"{KEY}={script}: its command reads {file}, which is not here; name that file instead")
    return found


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else yaml_files.load_plain(path)
    except (ValueError, YAMLError, OmegaConfBaseException, OSError) as error:
        raise DataError(f"{KEY}={path}: cannot be read ({' '.join(str(error).split())}); fix it there") from error
    if not isinstance(values, dict):
        raise DataError(f"{KEY}={path}: holds no mapping of keys to values; name a config of {format_tools()}")
    return {str(key): value for key, value in values.items()}


def _join_nested(keys: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The keys with a value, those of nested mappings joined by dots. An empty key counts as missing."""
    joined: dict[str, Any] = {}
    for key, value in keys.items():
        if key in NESTED and isinstance(value, dict):
            joined |= _join_nested(value, f"{prefix}{key}.")
        elif value not in (None, "", [], {}):
            joined[f"{prefix}{key}"] = value
    return joined
