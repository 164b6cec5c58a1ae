"""Everything that a run stands on, then and now: which of it has drifted."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import CONFIG
from peftrun.config import values as config
from peftrun.io import atomic_files
from peftrun.system.versions import LIBRARIES

# In the order in which a reader wants to hear of them: what is most likely to change what comes out first.
CONFIG_KEYS, DATA, BASE, ADAPTERS, LIBRARY, CODE, MACHINE, COMPUTING, SYSTEM, FOLDER, OTHER = (
    "config", "data", "base", "given adapters", "libraries", "peftrun's code", "machine", "computing", "system", "your folder",
    "other packages",
)  # fmt: skip
SHAPING = (*LIBRARIES, "numpy", "tokenizers", "bitsandbytes", "torchao", "triton", "jinja2")
NEITHER = ("template", "slots")  # say where values come from; the values themselves are compared
HEX, DIGEST = re.compile(r"[0-9a-f]{40,64}"), 12  # a digest, and how many of its digits are shown
UNKNOWN = "not recorded"
NOTHING = {
    CONFIG_KEYS: "null",
    LIBRARY: "not installed",
    OTHER: "not installed",
}  # how it is said that a value is not there
Values = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """One thing that a run stands on. A value that is not there is None; `known`: both sides tell of it."""

    kind: str
    name: str
    then: Any
    now: Any
    known: bool = True

    @property
    def has_drifted(self) -> bool:
        """Whether it is another than it was."""
        return self.known and self.then != self.now

    def __str__(self) -> str:
        if not self.known:
            return f"{self.name} {UNKNOWN}"
        if not self.has_drifted:
            return f"{self.name} {_format_value(self.then)}"
        nothing = NOTHING.get(self.kind, "none")
        return f"{self.name} {_format_value(self.then, nothing)} → {_format_value(self.now, nothing)}"

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return {"kind": self.kind, "name": self.name, "then": self.then, "now": self.now}


def compare_inputs(then: Values, now: Values, then_config: Values, now_config: Values) -> list[Input]:
    """Every input of two runs, from their records (`then`, `now`) and their resolved configs."""
    old, new = (record.get("environment") or {} for record in (then, now))
    return [
        *_compare_config(then_config, now_config),
        *_compare_data(then, now),
        *_compare_base(then, now),
        *_compare_mapping(ADAPTERS, then.get("given"), now.get("given")),
        *_compare_libraries(_select_packages(then), _select_packages(now)),
        *_compare_code(old.get("code"), new.get("code")),
        *_compare_machine(old, new),
        *_compare_numerics(then.get("computing"), now.get("computing")),
        _make_input(SYSTEM, "python", _get_python_version(then), _get_python_version(now)),
        _make_input(SYSTEM, "platform", then.get("platform"), now.get("platform")),
        *_compare_commit(FOLDER, then, now),
        *_compare_other_packages(old.get("packages"), new.get("packages")),
    ]


def compare_config_file(run: Path, then: Values) -> list[Input]:
    """Whether the config that lies in a run folder is the one that was run; older records do not tell."""
    recorded = then.get("config_sha256")
    found = _shorten_digest(atomic_files.hash_file(run / CONFIG))
    return [Input(CONFIG_KEYS, f"{CONFIG} itself", _shorten_digest(recorded), found)] if recorded else []


def _compare_config(then: Values, now: Values) -> Iterator[Input]:
    old, new = _flatten_values(then), _flatten_values(now)
    yield from (Input(CONFIG_KEYS, key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new]))


def _flatten_values(values: Values) -> Values:
    return config.flatten_keys({key: value for key, value in values.items() if key not in NEITHER})


def _compare_data(then: Values, now: Values) -> Iterator[Input]:
    yield from _compare_mapping(DATA, then.get("files"), now.get("files"))
    old, new = then.get("data"), now.get("data")
    if old is None and new is None:
        return
    yield _make_input(
        DATA, "rows", _shorten_digest((old or {}).get("digest")), _shorten_digest((new or {}).get("digest"))
    )


def _compare_base(then: Values, now: Values) -> Iterator[Input]:
    old, new = _get_fingerprint(then), _get_fingerprint(now)
    for part in old or new:
        yield _make_input(
            BASE, f"base {part.replace('_', ' ')}", _shorten_digest(old.get(part)), _shorten_digest(new.get(part))
        )


def _get_fingerprint(record: Values) -> Values:
    """Of a merge that is undone the merged model is what it stands on."""
    return ((record.get("base") or record.get("merged") or {}).get("fingerprint")) or {}


def _compare_mapping(kind: str, then: Values | None, now: Values | None) -> Iterator[Input]:
    if not then and not now:
        return
    yield from (
        Input(
            kind,
            name,
            _shorten_digest((then or {}).get(name)),
            _shorten_digest((now or {}).get(name)),
            then is not None,
        )
        for name in sorted({*(then or {}), *(now or {})})
    )


def _select_packages(record: Values) -> Values:
    """Those that shape a run. Older records hold the versions of a few."""
    found = (record.get("environment") or {}).get("packages") or record.get("versions") or {}
    return {name: found[name] for name in SHAPING if found.get(name, "not installed") != "not installed"}


def _compare_libraries(then: Values, now: Values) -> Iterator[Input]:
    names = [name for name in SHAPING if name in then or name in now]
    few = not any(name in then for name in SHAPING if name not in LIBRARIES)  # an older record
    yield from (Input(LIBRARY, name, then.get(name), now.get(name), not few or name in LIBRARIES) for name in names)


def _compare_other_packages(then: Values | None, now: Values | None) -> Iterator[Input]:
    if then is None or now is None:
        yield Input(OTHER, "other packages", None, None, known=False)
        return
    names = sorted({*then, *now} - set(SHAPING))
    yield from (Input(OTHER, name, then.get(name), now.get(name)) for name in names)


def _compare_code(then: Values | None, now: Values | None) -> Iterator[Input]:
    old, new = then or {}, now or {}
    yield _make_input(CODE, "source", _shorten_digest(old.get("sha256")), _shorten_digest(new.get("sha256")))
    if old:
        yield from _compare_commit(CODE, old, new)


def _compare_commit(kind: str, then: Values, now: Values) -> Iterator[Input]:
    """Where either side was started in a folder that git keeps."""
    old, new = then.get("git_commit"), now.get("git_commit")
    if old or new:
        yield Input(kind, "git commit", _shorten_digest(old), _shorten_digest(new))


def _compare_machine(then: Values, now: Values) -> Iterator[Input]:
    old, new = then.get("cpu") or {}, now.get("cpu") or {}
    yield _make_input(MACHINE, "processor", old.get("model"), new.get("model"))
    yield _compare_cpu_features(old.get("flags"), new.get("flags"))
    yield _make_input(MACHINE, "cores", then.get("cores"), now.get("cores"))
    known = bool(then and now)
    yield Input(MACHINE, "GPUs", _join_list(then.get("gpus")), _join_list(now.get("gpus")), known)
    yield Input(MACHINE, "driver", then.get("driver"), now.get("driver"), known)
    settings = then.get("settings") or {}, now.get("settings") or {}
    yield from (
        Input(COMPUTING, name, settings[0].get(name), settings[1].get(name), known)
        for name in sorted({*settings[0], *settings[1]})
    )


def _compare_cpu_features(then: list[str] | None, now: list[str] | None) -> Input:
    """Of a processor; where they differ those that it had or has alone."""
    if then is None or now is None or then == now:
        return _make_input(MACHINE, "its features", _join_list(then), _join_list(now))
    return Input(MACHINE, "its features", _join_list(sorted({*then} - {*now})), _join_list(sorted({*now} - {*then})))


def _compare_numerics(then: Values | None, now: Values | None) -> Iterator[Input]:
    names = [key for key in (then or now or {}) if key != "not_deterministic"]
    for name in names:
        old, new = ((side or {}).get(name) for side in (then, now))
        yield Input(
            COMPUTING, name.replace("_", " "), _join_list(old), _join_list(new), then is not None and now is not None
        )


def _join_list(value: Any) -> Any:
    return ("; ".join(value) or None) if isinstance(value, list) else value


def _get_python_version(record: Values) -> str | None:
    return (record.get("versions") or {}).get("python")


def _make_input(kind: str, name: str, then: Any, now: Any) -> Input:
    """An input that every run has: one that is not told on a side is not known."""
    return Input(kind, name, then, now, then is not None and now is not None)


def _shorten_digest(digest: Any) -> Any:
    return digest[:DIGEST] if isinstance(digest, str) and HEX.fullmatch(digest) else digest


def _format_value(value: Any, nothing: str = "null") -> str:
    text = nothing if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def select_drifted(inputs: Iterable[Input]) -> list[Input]:
    """Those that are not what they were."""
    return [one for one in inputs if one.has_drifted]


def list_unrecorded(inputs: Iterable[Input]) -> list[str]:
    """What the older record does not tell."""
    return list(dict.fromkeys(f"{one.kind}: {one.name}" for one in inputs if not one.known))


def format_rows(inputs: Iterable[Input], every: bool = False) -> list[tuple[str, str]]:
    """(kind, what has drifted) for the table; `every`: also what has not.

    What is the same is told one by one where there is little of it, else counted.
    """
    kinds: dict[str, list[Input]] = {}
    for one in inputs:
        kinds.setdefault(one.kind, []).append(one)
    found = []
    for kind, members in kinds.items():
        moved, same = select_drifted(members), [one for one in members if one.known and not one.has_drifted]
        silent = [one for one in members if not one.known]
        if moved:
            found.append((f"{kind}, drifted", "; ".join(map(str, moved))))
        if every and same:
            found.append((f"{kind}, the same", _describe_unchanged(same)))
        if every and silent:
            found.append((f"{kind}, {UNKNOWN}", ", ".join(one.name for one in silent)))
    return found


def _describe_unchanged(members: list[Input]) -> str:
    if members[0].kind == CONFIG_KEYS:
        return f"{len(members)} keys"
    if members[0].kind == OTHER:
        return f"{len(members)} packages"
    return "; ".join(str(one) for one in members if one.then is not None)
