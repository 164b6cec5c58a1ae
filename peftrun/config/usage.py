"""Which values of a run were read: a run that notes what is asked of it. Light.

`tracked` gives an equal run whose groups note each of their values that is read, however it is handed on; copies made by
`dataclasses.replace` go on noting into the same place. A value that `dataclasses.asdict` copies counts as read: the group was handed whole
to somebody. Comparing, showing, pickling and copying a run do not count.
"""

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any, TypeVar, cast

from peftrun.config import values as config

Spec = TypeVar("Spec")
MARK = "_reads"  # on the class of a group that notes: where it notes, and the group's full key
COPIERS = ("replace",)  # of `dataclasses`: what it reads it puts into a copy


class _ReadLog(set[str]):
    """Full keys that were read; what lies below a key was read with it."""

    def contains_leaf(self, key: str) -> bool:
        """Whether a leaf was read, by its own name or with something that holds it."""
        parts = key.split(".")
        return any(".".join(parts[:length]) in self for length in range(1, len(parts) + 1))


def track_reads(spec: Spec, key: str = "") -> Spec:
    """An equal run that notes what is read of it; or a group, with its full key. `spec` itself is left alone."""
    return cast(Spec, _attach_log(strip_tracking(spec), _ReadLog(), key))


def strip_tracking(spec: Spec) -> Spec:
    """An equal run, or group, that notes nothing: to be compared, written or kept."""
    if not _is_group(spec):
        return spec
    bare: Any = object.__new__(_get_schema_class(type(spec)))
    for key, value in _get_values(spec).items():
        object.__setattr__(bare, key, strip_tracking(value))
    return cast(Spec, bare)


def list_read_keys(spec: Any) -> list[str]:
    """Full keys that were read of a tracked run, or of the run that a group belongs to; empty where nothing is tracked."""
    place = getattr(type(spec), MARK, None)
    return sorted(place[0]) if place else []


def mark_used(spec: Any, keys: Iterable[str]) -> None:
    """Says that these full keys were read for this run elsewhere: by another process, or when what it uses was made."""
    place = getattr(type(spec), MARK, None)
    if place:
        place[0].update(keys)


def collect_kwargs(group: Any, ours: Iterable[str] = (), moot: Iterable[str] = ()) -> dict[str, Any]:
    """The values of a group as they are handed to a library, which counts as reading them.

    Args: ours: fields that the library does not know; left out. moot: fields that another value makes meaningless; handed, but not read.
    """
    values = {key: value for key, value in dataclasses.asdict(strip_tracking(group)).items() if key not in ours}
    place = getattr(type(group), MARK, None)
    if place:
        place[0].update(_join_key(place[1], key) for key in values.keys() - {*moot})
    return values


def list_unused_keys(spec: Any) -> list[str]:
    """Full keys of a tracked run that nothing has read, in the order of the configuration."""
    place = getattr(type(spec), MARK, None)
    if not place:
        return []
    leaves = config.flatten_keys(dataclasses.asdict(strip_tracking(spec)))
    return [key for key in leaves if not place[0].contains_leaf(key)]


def _is_group(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _get_schema_class(kind: type) -> type:
    """The class as it is written in the schema."""
    return kind.__mro__[1] if MARK in vars(kind) else kind


def _get_values(group: Any) -> dict[str, Any]:
    """What a group holds, without a note of it."""
    return cast(dict[str, Any], object.__getattribute__(group, "__dict__"))


def _attach_log(group: Any, notes: _ReadLog, key: str) -> Any:
    """The same object, which from now on notes; groups in it too."""
    for name, value in _get_values(group).items():
        if _is_group(value):
            _attach_log(value, notes, _join_key(key, name))
    object.__setattr__(group, "__class__", _build_tracking_class(type(group), notes, key))
    return group


def _join_key(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _build_tracking_class(kind: type, notes: _ReadLog, key: str) -> type:
    """A class of its own for each group, so that a copy notes into the same place."""
    names = {field.name for field in dataclasses.fields(kind)}

    def read(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in names and not _is_group(value) and not _is_copying(sys._getframe(1)):
            notes.add(_join_key(key, name))
        return value

    same = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {
        "__getattribute__": read,
        "__eq__": lambda self, other: strip_tracking(self) == strip_tracking(other),
        "__repr__": lambda self: repr(strip_tracking(self)),
        "__reduce_ex__": lambda self, protocol: (strip_tracking, (strip_tracking(self),)),
        "__hash__": None,
    }
    return type(kind.__name__, (kind,), {**same, **methods, MARK: (notes, key)})


def _is_copying(reader: Any) -> bool:
    """Whether whoever reads makes or checks a copy of the group, which is no use of the value."""
    module, function = reader.f_globals.get("__name__", ""), reader.f_code.co_name
    return module.startswith("pydantic") or (module == "dataclasses" and function in COPIERS)
