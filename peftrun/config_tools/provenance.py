"""Where each value of a composed configuration comes from: a line of a file, or what was typed. Light.

Hydra says which files it merges, in which order and under which package; each file is read once more, with the numbers of its lines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.defaults_list import DefaultsList
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override

from peftrun.composition import adapter_defaults
from peftrun.composition.composer import HYDRAS, ROOT, Composer
from peftrun.config import migrations, paths
from peftrun.config import values as config
from peftrun.config.override_syntax import INTERPOLATION

FILE, TYPED, RECORDED, UNKNOWN = "file", "typed", "recorded", "nowhere"
YAML_MERGE_TAG = "tag:yaml.org,2002:merge"  # `<<: *anchor`


@dataclass(frozen=True)
class ValueSource:
    """Where a value comes from.

    Attributes:
        kind: `file`, `typed`, `recorded` (the run folder's config.yaml, where today's composition says otherwise) or `nowhere`.
        text: `lora/dora.yaml`, or what was typed.
        line: of the file.
        place: where that file's options are, empty if they are peftrun's own.
        interpolated: it says where to take the value from.
    """

    kind: str
    text: str = ""
    line: int = 0
    place: str = ""
    interpolated: bool = False

    def told(self) -> str:
        """In a few words."""
        if self.kind == TYPED:
            return f"typed: {self.text}"
        if self.kind == RECORDED:
            return f"recorded in {self.text}"
        at = f"{self.text}:{self.line}" if self.line else self.text or self.kind
        where = f"{at} in {self.place.removeprefix('file://')}" if self.place else at
        return f"${{…}} in {where}" if self.interpolated else where

    def path(self) -> str | None:
        """The file, as an editor opens it."""
        if self.kind != FILE:
            return None
        if self.place.startswith("pkg://"):
            return f"{self.place}/{self.text}"
        return str(Path(self.place.removeprefix("file://") or paths.config_dir()) / self.text)


@dataclass(frozen=True)
class GroupChoice:
    """The option that was chosen of a group, and by whom: `typed`, `by experiment=ner`, `default`."""

    group: str
    option: str | None
    chosen_by: str


@dataclass(frozen=True)
class ConfigOrigins:
    """A composed configuration: its values, full key → where each comes from, and which options were chosen."""

    values: dict[str, Any]
    sources: dict[str, ValueSource]
    choices: list[GroupChoice]


def trace_origins(compositions: Composer, overrides: Sequence[str]) -> ConfigOrigins:
    """Where every value comes from that `overrides` compose.

    Raises: compose.REFUSALS: Hydra cannot compose them. ConfigError: an interpolation leads nowhere.
    """
    values, defaults = compositions.compose(overrides), compositions.defaults(overrides)
    found: dict[str, ValueSource] = {}
    for one in compositions.files(overrides):
        for key, source in _trace_file(compositions, one):
            _set_source(found, key, source)
    for override in defaults.config_overrides:
        for key, source in _trace_override(override):
            _set_source(found, key, source)
    for old, (new, _) in migrations.RENAMED.items():
        if old in found:
            found[new] = found.pop(old)
    own, composed = adapter_defaults.apply_adapter_defaults(values, overrides), config.flatten_keys(values)
    run = ValueSource(RECORDED, str(adapter_defaults.find_adapter_run(values) or ""))
    sources = {
        key: _find_source(found, key) if key in composed and composed[key] == value else run
        for key, value in config.flatten_keys(own).items()
    }
    return ConfigOrigins(
        own, sources, _list_choices(defaults, {text.partition("=")[0].lstrip("+") for text in overrides})
    )


def _trace_file(compositions: Composer, default: ResultDefault) -> Iterator[tuple[str, ValueSource]]:
    found = compositions.repository.load_config(str(default.config_path))
    if found is None or found.is_schema_source:
        return
    name = f"{str(default.config_path).removesuffix('.yaml')}.yaml"
    place = "" if found.path == f"file://{paths.config_dir()}" else found.path
    for key, line, text in _walk_leaves(yaml.compose(_read_text(found.path, name), Loader=yaml.SafeLoader), 0):
        if key.split(".")[0] not in (("defaults", HYDRAS) if default.config_path == ROOT else ("defaults",)):
            full = f"{default.package}.{key}" if default.package else key
            yield full, ValueSource(FILE, name, line, place, _is_interpolated(text))


def _read_text(place: str, name: str) -> str:
    scheme, _, where = place.partition("://")
    folder = resources.files(where) if scheme == "pkg" else Path(where)
    return folder.joinpath(name).read_text(encoding="utf-8")


def _walk_leaves(node: Any, line: int, prefix: str = "") -> Iterator[tuple[str, int, Any]]:
    """Full key, line and node of every leaf of a file."""
    if not isinstance(node, yaml.MappingNode) or not node.value:
        if prefix:
            yield prefix, line, node
        return
    for name, value in sorted(
        node.value, key=lambda pair: pair[0].tag != YAML_MERGE_TAG
    ):  # what is merged in stands before
        if name.tag == YAML_MERGE_TAG:
            for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _walk_leaves(one, line, prefix)
        else:
            yield from _walk_leaves(
                value, name.start_mark.line + 1, f"{prefix}.{_parse_key(name)}" if prefix else _parse_key(name)
            )


def _parse_key(node: Any) -> str:
    """A key as `config.flatten` writes it."""
    loader = yaml.SafeLoader("")
    try:
        return str(loader.construct_object(node))
    finally:
        loader.dispose()


def _is_interpolated(node: Any) -> bool:
    if isinstance(node, yaml.ScalarNode):
        found = INTERPOLATION.search(str(node.value))
        return found is not None and len(found[1]) % 2 == 0
    if isinstance(node, yaml.SequenceNode):
        return any(map(_is_interpolated, node.value))
    return isinstance(node, yaml.MappingNode) and any(_is_interpolated(value) for _, value in node.value)


def _trace_override(override: Override) -> Iterator[tuple[str, ValueSource]]:
    source = ValueSource(TYPED, str(override.input_line))
    for key in config.flatten_keys(override.value(), override.key_or_group) if not override.is_delete() else ():
        yield key, source


def _set_source(found: dict[str, ValueSource], key: str, source: ValueSource) -> None:
    """A leaf takes the place of what was above and below it."""
    parts = key.split(".")
    above = [".".join(parts[:length]) for length in range(1, len(parts))]
    for other in [one for one in found if one in above or one.startswith(f"{key}.")]:
        del found[other]
    found.pop(key, None)
    found[key] = source


def _find_source(found: dict[str, ValueSource], key: str) -> ValueSource:
    """That of the key, or of what it is part of: a mapping taken from elsewhere, a path that became a mapping."""
    parts = key.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((found[name] for name in names if name in found), ValueSource(UNKNOWN))


def _list_choices(defaults: DefaultsList, typed: set[str]) -> list[GroupChoice]:
    found = {
        group: option for group, option in defaults.overrides.known_choices.items() if not group.startswith(HYDRAS)
    }
    ordered = sorted(found, key=lambda group: [*paths.GROUPS, group].index(group))
    return [
        GroupChoice(group, found[group], _describe_chooser(defaults, group, typed))
        for group in ordered
        if found[group] is not None
    ]


def _describe_chooser(defaults: DefaultsList, group: str, typed: set[str]) -> str:
    if group in typed:
        return TYPED
    asked = defaults.overrides.override_metadata.get(group)
    where = asked.containing_config_path if asked else None
    return f"by {where.replace('/', '=')}" if where else "default"
