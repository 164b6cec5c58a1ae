"""Track which values of a run are read. Light.

`track_reads` returns an equal run whose groups log each field that is read, wherever they are passed; copies made by
`dataclasses.replace` write to the same log. A value copied by `dataclasses.asdict` counts as read: the whole group was passed to a
library. Comparing, printing, pickling and copying a run do not count.
"""

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any, TypeVar, cast

from peftrun.config import values as config

Spec = TypeVar("Spec")
MARK = "_reads"  # attribute of a tracking class: its (log, full key of the group)
COPIERS = ("replace",)  # functions of `dataclasses` that only copy what they read


class _ReadLog(set[str]):
    """Full keys that were read; a key includes all keys below it."""

    def contains_leaf(self, key: str) -> bool:
        """Whether a leaf was read, by itself or with a mapping that contains it."""
        parts = key.split(".")
        return any(".".join(parts[:length]) in self for length in range(1, len(parts) + 1))


def track_reads(spec: Spec, key: str = "") -> Spec:
    """An equal run that logs its reads; or a group, with its full key. `spec` itself is unchanged."""
    return cast(Spec, _attach_log(strip_tracking(spec), _ReadLog(), key))


def strip_tracking(spec: Spec) -> Spec:
    """An equal run, or group, without tracking: to compare, write or store."""
    if not _is_group(spec):
        return spec
    kind = type(spec)
    bare: Any = object.__new__(
        kind.__mro__[1] if MARK in vars(kind) else kind
    )  # the schema's class, not the tracking one
    for key, value in _get_values(spec).items():
        object.__setattr__(bare, key, strip_tracking(value))
    return cast(Spec, bare)


def list_read_keys(spec: Any) -> list[str]:
    """Full keys that were read of a tracked run, or of the run that a group belongs to; empty without tracking."""
    tracking = getattr(type(spec), MARK, None)
    return sorted(tracking[0]) if tracking else []


def mark_used(spec: Any, keys: Iterable[str]) -> None:
    """Log full keys as read that were read elsewhere: by another process, or when a cached input of the run was made."""
    tracking = getattr(type(spec), MARK, None)
    if tracking:
        tracking[0].update(keys)


def collect_kwargs(group: Any, ours: Iterable[str] = (), without_effect: Iterable[str] = ()) -> dict[str, Any]:
    """The values of a group as keyword arguments for a library, which counts as reading them.

    Args: ours: fields that the library does not have; left out. without_effect: fields without effect because of another value; passed, but not
        counted as read.
    """
    values = {key: value for key, value in dataclasses.asdict(strip_tracking(group)).items() if key not in ours}
    tracking = getattr(type(group), MARK, None)
    if tracking:
        log, group_key = tracking
        log.update(_join_key(group_key, key) for key in values.keys() - {*without_effect})
    return values


def list_unused_keys(spec: Any) -> list[str]:
    """Full keys of a tracked run that were not read, in the order of the configuration."""
    tracking = getattr(type(spec), MARK, None)
    if not tracking:
        return []
    leaves = config.flatten_keys(dataclasses.asdict(strip_tracking(spec)))
    return [key for key in leaves if not tracking[0].contains_leaf(key)]


def _is_group(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _get_values(group: Any) -> dict[str, Any]:
    """The fields of a group, read without logging."""
    return cast(dict[str, Any], object.__getattribute__(group, "__dict__"))


def _attach_log(group: Any, log: _ReadLog, key: str) -> Any:
    """The same object, which from now on logs its reads, with the groups in it."""
    for name, value in _get_values(group).items():
        if _is_group(value):
            _attach_log(value, log, _join_key(key, name))
    object.__setattr__(group, "__class__", _build_tracking_class(type(group), log, key))
    return group


def _join_key(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _build_tracking_class(kind: type, log: _ReadLog, key: str) -> type:
    """A subclass for one group: `dataclasses.replace` builds the copy from the class, so the copy has the same log."""
    names = {field.name for field in dataclasses.fields(kind)}

    def read(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in names and not _is_group(value):
            # pydantic validates a copy, and `dataclasses.replace` makes one: neither uses the value.
            frame = sys._getframe(1)
            module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
            if not module.startswith("pydantic") and not (module == "dataclasses" and function in COPIERS):
                log.add(_join_key(key, name))
        return value

    # Pickled and shown as the plain class: a tracking class exists in this process only.
    same = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {
        "__getattribute__": read,
        "__eq__": lambda self, other: strip_tracking(self) == strip_tracking(other),
        "__repr__": lambda self: repr(strip_tracking(self)),
        "__reduce_ex__": lambda self, protocol: (strip_tracking, (strip_tracking(self),)),
        "__hash__": None,
    }
    return type(kind.__name__, (kind,), {**same, **methods, MARK: (log, key)})
