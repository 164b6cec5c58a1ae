"""The source of each value of a composed configuration: a line of a file, or a typed override. Light.

Hydra reports the files that it merges, their order and their packages, but no lines; each file is therefore parsed again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra.core.default_element import ResultDefault

from peftrun.artifacts import function_files
from peftrun.compat.hydra import DefaultsList
from peftrun.composition import adapter_defaults
from peftrun.composition.composer import HYDRAS, ROOT, Composer
from peftrun.config import migrations, paths
from peftrun.config import values as config
from peftrun.config.override_syntax import INTERPOLATION

FILE, TYPED, RECORDED, UNKNOWN = "file", "typed", "recorded", "nowhere"  # in the JSON of action=explain
YAML_MERGE_TAG = "tag:yaml.org,2002:merge"  # `<<: *anchor`


@dataclass(frozen=True)
class ValueSource:
    """The source of a value.

    Attributes:
        kind: `file`, `typed`, `recorded` (the run folder's config.yaml, which today's options contradict) or `nowhere`.
        text: the file below its config directory, such as `lora/dora.yaml`; or the typed override.
        line: line number in the file; 0: not known.
        place: entry of the search path that has the file; empty for peftrun's own.
        interpolated: the file has an interpolation, which takes the value from another key.
    """

    kind: str
    text: str = ""
    line: int = 0
    place: str = ""
    interpolated: bool = False

    def describe(self) -> str:
        """The source as text: `lora/dora.yaml:6`, `typed: lora.r=4`, …"""
        if self.kind == TYPED:
            return f"typed: {self.text}"
        if self.kind == RECORDED:
            return f"recorded in {self.text}"
        location = f"{self.text}:{self.line}" if self.line else self.text or self.kind
        if self.place:
            location = f"{location} in {self.place.removeprefix('file://')}"
        return f"${{…}} in {location}" if self.interpolated else location

    def path(self) -> str | None:
        """The path of the file; None if the source is not a file."""
        if self.kind != FILE:
            return None
        if self.place.startswith("pkg://"):
            return f"{self.place}/{self.text}"
        return str(Path(self.place.removeprefix("file://") or paths.config_dir()) / self.text)


@dataclass(frozen=True)
class GroupChoice:
    """The chosen option of a group, and what chose it: `typed`, `by experiment=ner`, `default`."""

    group: str
    option: str | None
    chosen_by: str


@dataclass(frozen=True)
class ConfigOrigins:
    """A composed configuration: its values, full key → source, and the chosen options."""

    values: dict[str, Any]
    sources: dict[str, ValueSource]
    choices: list[GroupChoice]


def trace_origins(
    compositions: Composer, overrides: Sequence[str], adapters: Mapping[str, str] | None = None
) -> ConfigOrigins:
    """The source of every value of the config that `overrides` compose. `adapters`: those of it, with the commits of downloaded ones.

    Raises: compose.REFUSALS: Hydra cannot compose them. ConfigError: an interpolation refers to a key that does not exist.
    """
    composed = function_files.make_absolute(compositions.compose(overrides), overrides)
    defaults = compositions.defaults(overrides)
    composed["adapter"] = dict(adapters) if adapters else composed["adapter"]
    sources: dict[str, ValueSource] = {}
    # In Hydra's order of merging, so that a later source replaces an earlier one; typed overrides come last.
    for default in compositions.files(overrides):
        for key, source in _trace_file(compositions, default):
            _set_source(sources, key, source)
    for override in defaults.config_overrides:
        typed = ValueSource(TYPED, str(override.input_line))
        for key in () if override.is_delete() else config.flatten_keys(override.value(), override.key_or_group):
            _set_source(sources, key, typed)
    # `adapter=` takes model and task from its run's config, or its own files, where they are not typed.
    origin, composed_leaves = adapter_defaults.find_adapter_origin(composed), config.flatten_keys(composed)
    values = adapter_defaults.apply_adapter_defaults(composed, overrides, origin)
    # Without an origin the adapter's own config may say its method, where it is trained further.
    recorded = ValueSource(RECORDED, origin.source if origin else next(iter(composed.get("adapter", {}).values()), ""))
    leaf_sources = {
        key: _find_source(sources, key) if key in composed_leaves and composed_leaves[key] == value else recorded
        for key, value in config.flatten_keys(values).items()
    }
    return ConfigOrigins(values, leaf_sources, _list_choices(defaults, overrides))


def _trace_file(compositions: Composer, default: ResultDefault) -> Iterator[tuple[str, ValueSource]]:
    loaded = compositions.repository.load_config(str(default.config_path))
    if loaded is None or loaded.is_schema_source:
        return
    name = f"{str(default.config_path).removesuffix('.yaml')}.yaml"
    place = "" if loaded.path == f"file://{paths.config_dir()}" else loaded.path
    scheme, _, location = loaded.path.partition("://")
    folder = resources.files(location) if scheme == "pkg" else Path(location)
    root = yaml.compose(folder.joinpath(name).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    skipped = ("defaults", HYDRAS) if default.config_path == ROOT else ("defaults",)
    for key, line, node in _walk_leaves(root, 0):
        if key.split(".")[0] not in skipped:
            full_key = f"{default.package}.{key}" if default.package else key
            yield migrations.rename_key(full_key)[0], ValueSource(FILE, name, line, place, _is_interpolated(node))


def _walk_leaves(node: Any, line: int, prefix: str = "") -> Iterator[tuple[str, int, Any]]:
    """(full key, line, node) of every leaf of a YAML document; an empty mapping is a leaf."""
    if not isinstance(node, yaml.MappingNode) or not node.value:
        if prefix:
            yield prefix, line, node
        return
    # Merged mappings (`<<: *anchor`) first: the mapping's own keys override them, wherever `<<` is.
    for name, value in sorted(node.value, key=lambda pair: pair[0].tag != YAML_MERGE_TAG):
        if name.tag == YAML_MERGE_TAG:
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _walk_leaves(merged, line, prefix)
        else:
            yield from _walk_leaves(
                value, name.start_mark.line + 1, f"{prefix}.{_parse_key(name)}" if prefix else _parse_key(name)
            )


def _parse_key(node: Any) -> str:
    """A key as `config.flatten_keys` writes it: a bare `1` or `yes` is not a string in YAML."""
    loader = yaml.SafeLoader("")
    try:
        return str(loader.construct_object(node))
    finally:
        loader.dispose()


def _is_interpolated(node: Any) -> bool:
    if isinstance(node, yaml.ScalarNode):
        match = INTERPOLATION.search(str(node.value))
        return match is not None and len(match[1]) % 2 == 0  # an odd number of backslashes escapes the `${`
    if isinstance(node, yaml.SequenceNode):
        return any(map(_is_interpolated, node.value))
    return isinstance(node, yaml.MappingNode) and any(_is_interpolated(value) for _, value in node.value)


def _set_source(sources: dict[str, ValueSource], key: str, source: ValueSource) -> None:
    """Sets the source of a leaf, and removes the leaves that it replaces: its parents' and those below it."""
    parts = key.split(".")
    parents = [".".join(parts[:length]) for length in range(1, len(parts))]
    for other in [name for name in sources if name in parents or name.startswith(f"{key}.")]:
        del sources[other]
    sources.pop(key, None)  # so that the new source comes last in the dict's order
    sources[key] = source


def _find_source(sources: dict[str, ValueSource], key: str) -> ValueSource:
    """The source of the key or of its nearest parent, such as a mapping that was interpolated as a whole."""
    parts = key.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((sources[name] for name in names if name in sources), ValueSource(UNKNOWN))


def _list_choices(defaults: DefaultsList, overrides: Sequence[str]) -> list[GroupChoice]:
    typed_groups = {text.partition("=")[0].lstrip("+") for text in overrides}
    options = {
        group: option
        for group, option in defaults.overrides.known_choices.items()
        if option is not None and not group.startswith(HYDRAS)
    }
    choices = []
    for group in sorted(options, key=lambda group: [*paths.GROUPS, group].index(group)):
        metadata = defaults.overrides.override_metadata.get(group)  # of an `override /GROUP:` in some file's defaults
        config_path = metadata.containing_config_path if metadata else None
        chosen_by = f"by {config_path.replace('/', '=')}" if config_path else "default"
        choices.append(GroupChoice(group, options[group], TYPED if group in typed_groups else chosen_by))
    return choices
