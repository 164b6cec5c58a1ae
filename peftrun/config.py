"""From a composed configuration to a `RunSpec`: every problem found, all of them reported together.

The only module that knows omegaconf. After `build` there is no DictConfig.
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from yaml import YAMLError

from peftrun import checks, migrations, packages, peer_keys, schema
from peftrun.errors import ArtifactError, ConfigError
from peftrun.team import slots
from peftrun.unknown_keys import in_shell, unknown_key

MISSING = "???"
QUOTES = " (write it in quotes: YAML reads a bare no, off or 012 as something else than text)"
_TOLD: set[str] = set()
SCALARS = {
    "task.data": "task.data.path",
    "task.objective": "task",
}  # mappings → the key of what is typed in their place
RULES = {  # pydantic's words in ours
    "Input should be an object": "must be a mapping {name: VALUE}",
    "Input should be a valid array": "must be a list",
    "Input should be": "must be",
    "Input should": "must",
    "String should": "must",
    "List should": "must",
    "Value should": "must",
    "Input tag": "name",
}


def build(cfg: DictConfig) -> schema.RunSpec:
    """The run that a composed configuration describes.

    Raises: ConfigError: one line a problem: unknown keys, missing values, wrong types, values out of range,
        values that contradict each other, files and folders that are not there.
    """
    return of_values(plain(cfg))


def of_values(values: dict[str, Any]) -> schema.RunSpec:
    """The run that resolved values describe, such as `plain` gives. Raises: ConfigError: see `build`."""
    parts, problems = {}, [*_unknown_groups(values), *_missing(values), *slots.problems(values)]
    for name, kind in _types(schema.RunSpec).items():
        try:
            parts[name] = _reader(name).validate_json(json.dumps(values.get(name)), strict=True)
        except ValidationError as error:
            problems += _explain(name, values.get(name), kind, error)
    problems += checks.run(
        {name: part for name, part in parts.items() if MISSING not in flatten(values[name]).values()}
    )
    if problems:
        raise ConfigError(*problems)
    return schema.RunSpec(**parts)


def read_values(path: Path) -> dict[str, Any]:
    """Plain nested values of a saved `config.yaml`, as they are: it may be older than this version's schema. `read_run` reads older ones.

    Raises: ArtifactError: it is no YAML.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: is not readable YAML ({' '.join(str(error).split())}); restore it") from error


def read_run(path: Path, aloud: bool = True) -> dict[str, Any]:
    """Plain nested values of a run's `config.yaml` in today's keys; what that changed is told, or not, where many runs are looked at."""
    values, lines = migrations.upgraded(read_values(path))
    tell([f"{path}: {line}" for line in lines] if aloud else [])
    return values


def tell(lines: Sequence[str]) -> None:
    """Says each line, once in this process: a configuration is read many times."""
    from peftrun import console

    for line in lines:
        if line not in _TOLD:
            _TOLD.add(line)
            console.say(line)


def read_list(path: Path) -> list[Any]:
    """A saved list, such as Hydra's of what was typed."""
    return list(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]


def to_yaml(spec: schema.RunSpec) -> str:
    """The resolved configuration as text that `read_values` reads back."""
    return values_to_yaml(dataclasses.asdict(spec))


def values_to_yaml(values: dict[str, Any] | list[Any]) -> str:
    """Plain nested values as text that `read_values` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(values))


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Full dotted key → value of every leaf of nested mappings."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    leaves = (flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in values.items())
    return {key: item for leaf in leaves for key, item in leaf.items()}


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Plain nested values in today's keys, interpolations resolved, `adapter` normalised to a mapping name → path."""
    waiting = slots.unfilled(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    try:
        values = OmegaConf.to_container(_without(cfg, waiting), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{error.full_key or 'config'}: {str(error).splitlines()[0]}; mend the interpolation"
        ) from error
    assert isinstance(values, dict)
    adapter = values.get("adapter")
    values["adapter"] = {} if adapter is None else {"default": adapter} if isinstance(adapter, str) else adapter
    found, lines = migrations.renamed(slots.mark(values, waiting))  # type: ignore[arg-type]
    tell(lines)
    return packages.of_the_user(found)


def _without(cfg: DictConfig, keys: list[str]) -> DictConfig:
    """A copy in which these keys have no value."""
    if not keys:
        return cfg
    found = copy.deepcopy(cfg)
    for key in keys:
        OmegaConf.update(found, key, MISSING)
    return found


@cache
def _types(owner: type) -> dict[str, Any]:
    return get_type_hints(owner, include_extras=True)


@cache
def _reader(group: str) -> TypeAdapter[Any]:
    """Checks and types the values of a group; made once, since a sweep has many cells."""
    return TypeAdapter(_types(schema.RunSpec)[group])


def _unknown_groups(values: dict[str, Any]) -> list[str]:
    known = list(_types(schema.RunSpec))
    return [unknown_key(key, value, known) for key, value in values.items() if key not in known]


def _missing(values: dict[str, Any]) -> list[str]:
    """Slots are told with what belongs there, and not also the keys that read them."""
    return [
        f"{key} is not set; type {key}={_usual(key, values)}"
        for key, value in flatten(values).items()
        if value == MISSING and not isinstance(value, slots.Unfilled) and not key.startswith("slots.")
    ]


def _usual(key: str, values: dict[str, Any]) -> Any:
    """What is typed for a key that has no value, as its type offers."""
    group, *path = key.split(".")
    found = _example(_at(_types(schema.RunSpec).get(group), path, values.get(group)))
    return "VALUE" if found is None else found


def _explain(group: str, given: Any, kind: Any, error: ValidationError) -> list[str]:
    rules: dict[str, list[str]] = {}
    lines = []
    for item in error.errors(include_url=False):
        path, value = _follow(given, item["loc"])
        key = ".".join([group, *path])
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(unknown_key(key, value, _known_keys(group, kind, path[:-1], given)))
        elif item["type"] == "missing":
            rules.setdefault(f"{key}.{item['loc'][-1]} is not set", [])
        elif value != MISSING:
            rules.setdefault(f"{key}={_show(value)}", []).append(_rule(item))
    lines += [_line(key, list(dict.fromkeys(rule)), kind, given) for key, rule in rules.items()]
    return lines


def _follow(given: Any, location: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """The part of an error's location that names keys of the input (the rest names types), and the value there."""
    path: list[str] = []
    for step in location:
        if isinstance(given, dict) and step in given:
            given = given[step]
            path.append(str(step))
    return path, given


def _rule(item: Any) -> str:
    message = str(item["msg"])
    for theirs, ours in RULES.items():
        message = message.replace(theirs, ours)
    return message + QUOTES * (item["type"] == "string_type" and isinstance(item["input"], bool | int | float))


def _show(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) or value is None else str(value)


def _line(key: str, rules: list[str], kind: Any, given: Any) -> str:
    name, _, value = key.removesuffix(" is not set").partition("=")
    advice = _advice(name, value, _at(kind, name.split(".")[1:], given))
    return f"{key}{': ' if rules else ''}{' or '.join(rules)}{advice}"


def _advice(name: str, value: str, kind: Any) -> str:
    """What to type for a key of this type."""
    if name in SCALARS and value and value[0] not in "{[":
        return f"; type {in_shell(f'{SCALARS[name]}={value}')}"
    kinds, example = (kind, *_inner(kind)), _example(kind)
    if example is None and value:
        example = _nearest(kind, value)
    if example is None and bool in kinds:
        return f"; type {name}=true or {name}=false"
    if example is None and any(get_origin(one) is dict for one in kinds):
        example = "{NAME: VALUE}"
    return "" if example is None else f"; type {in_shell(f'{name}={example}')}"


def _at(kind: Any, path: list[str], given: Any) -> Any:
    """The type of a key, in the chosen one of several dataclasses that have it; None where no type is known."""
    for step in path:
        owners = [owner for owner in _dataclasses(kind) if step in _types(owner)]
        owners = [owner for owner in owners if _is_selected(owner, given)] or owners
        kind = _types(owners[0])[step] if owners else None
        given = given.get(step) if isinstance(given, dict) else None
    return kind


def takes_list(key: str) -> bool:
    """Whether this key may hold a list."""
    group, *path = key.split(".")
    kind = _at(_types(schema.RunSpec).get(group), path, None)
    return any(get_origin(one) is list for one in (kind, *_inner(kind)))


def _example(kind: Any) -> Any:
    """What the schema offers as a sensible value."""
    for part in (kind, *get_args(kind)):
        for note in getattr(part, "__metadata__", ()):
            if isinstance(note, FieldInfo) and note.examples:
                return note.examples[0]
    return None


def _nearest(kind: Any, value: str) -> str | None:
    """Of the words that a type offers those nearest to what was typed, in a list where it wants one."""
    parts = [kind, *_inner(kind)]
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    if not words:
        return None
    typed = [peer_keys.VALUES.get(one.strip(' "'), one.strip(' "')) for one in value.strip("[]").split(",")]
    near = [(get_close_matches(one, words, n=1, cutoff=0.4) or words[:1])[0] for one in typed]
    return f"[{','.join(near)}]" if any(get_origin(part) is list for part in parts) else near[0]


def _inner(kind: Any) -> list[Any]:
    """The types that a type is made of, however deep; not those of dataclasses."""
    return [one for part in get_args(kind) for one in (part, *_inner(part))]


def _dataclasses(kind: Any) -> list[type]:
    if get_origin(kind) is Annotated:
        return _dataclasses(get_args(kind)[0])
    return [kind] if dataclasses.is_dataclass(kind) else [item for arg in get_args(kind) for item in _dataclasses(arg)]  # type: ignore[list-item]


def _known_keys(group: str, kind: Any, path: list[str], given: Any) -> list[str]:
    owners = _dataclasses(kind)
    for step in path:
        owners = [inner for owner in owners for inner in _dataclasses(_types(owner).get(step))]
    chosen = [owner for owner in owners if _is_selected(owner, given)] or owners
    return [".".join([group, *path, name]) for owner in chosen for name in _types(owner)]


def _is_selected(owner: type, given: Any) -> bool:
    tag = next(iter(_types(owner).items()), None)
    return bool(tag and isinstance(given, dict) and given.get(tag[0]) in get_args(tag[1]))
