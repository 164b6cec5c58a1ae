"""Compare all inputs of a run then and now: which of them have drifted."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import CONFIG
from peftrun.config import values as config
from peftrun.formatting import format_value
from peftrun.io import atomic_files
from peftrun.system.versions import LIBRARIES

# Kinds of inputs, in the order of the report: the most likely cause of another outcome first.
CONFIG_KEYS, DATA, BASE, ADAPTERS, LIBRARY, CODE, MACHINE, COMPUTING, SYSTEM, FOLDER, OTHER = (
    "config", "data", "base", "input adapters", "libraries", "peftrun's code", "machine", "numerics", "system", "your folder",
    "other packages",
)  # fmt: skip
SHAPING = (*LIBRARIES, "numpy", "tokenizers", "bitsandbytes", "torchao", "triton", "jinja2")
PROVENANCE_KEYS = ("template", "params")  # say where values come from; the values themselves are compared
HEX, DIGEST = re.compile(r"[0-9a-f]{40,64}"), 12  # a git commit or sha256, and how many of its digits are shown
UNKNOWN = "not recorded"
NOTHING = {CONFIG_KEYS: "null", LIBRARY: "not installed", OTHER: "not installed"}  # texts for a missing value
Values = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """One input of a run, then and now; a missing value is None. `known`: both records hold it."""

    kind: str
    name: str
    then: Any
    now: Any
    known: bool = True

    @property
    def has_drifted(self) -> bool:
        """Whether the value has changed."""
        return self.known and self.then != self.now

    def __str__(self) -> str:
        if not self.known:
            return f"{self.name} {UNKNOWN}"
        if not self.has_drifted:
            return f"{self.name} {_format_value(self.then)}"
        nothing = NOTHING.get(self.kind, "none")
        return f"{self.name} {_format_value(self.then, nothing)} → {_format_value(self.now, nothing)}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-serializable values for record.json."""
        return {"kind": self.kind, "name": self.name, "then": self.then, "now": self.now}


def compare_inputs(then: Values, now: Values, then_config: Values, now_config: Values) -> list[Input]:
    """All inputs of two runs, from their records (`then`, `now`) and their resolved configs."""
    old, new = (record.get("environment") or {} for record in (then, now))
    old_code, new_code = old.get("code") or {}, new.get("code") or {}  # older records hold nothing about the code
    old_config, new_config = _flatten_values(then_config), _flatten_values(now_config)
    old_packages, new_packages = _select_packages(then), _select_packages(now)
    is_older = not any(name in old_packages for name in SHAPING if name not in LIBRARIES)  # of an earlier version
    has_data = any(record.get("data") is not None for record in (then, now))
    digests = [_shorten_digest((record.get("data") or {}).get("digest")) for record in (then, now)]  # of the rows
    bases = _get_fingerprint(then), _get_fingerprint(now)
    return [
        *(Input(CONFIG_KEYS, key, old_config.get(key), new_config.get(key)) for key in {**old_config, **new_config}),
        *_compare_mapping(DATA, then.get("files"), now.get("files")),
        *([_make_input(DATA, "rows", *digests)] if has_data else []),
        *(
            _make_input(BASE, f"base {key.replace('_', ' ')}", *(_shorten_digest(base.get(key)) for base in bases))
            for key in bases[0] or bases[1]  # weights, tokenizer, chat template
        ),
        *_compare_mapping(ADAPTERS, then.get("input_adapters"), now.get("input_adapters")),
        *(
            Input(LIBRARY, name, old_packages.get(name), new_packages.get(name), not is_older or name in LIBRARIES)
            for name in SHAPING
            if name in old_packages or name in new_packages
        ),
        _make_input(CODE, "source", _shorten_digest(old_code.get("sha256")), _shorten_digest(new_code.get("sha256"))),
        *(_compare_commit(CODE, old_code, new_code) if old_code else ()),
        *_compare_machine(old, new),
        *_compare_numerics(then.get("numerics"), now.get("numerics")),
        _make_input(SYSTEM, "python", _get_python_version(then), _get_python_version(now)),
        _make_input(SYSTEM, "platform", then.get("platform"), now.get("platform")),
        *_compare_commit(FOLDER, then, now),
        *_compare_other_packages(old.get("packages"), new.get("packages")),
    ]


def compare_config_file(run: Path, then: Values) -> list[Input]:
    """Whether config.yaml in the run folder is unchanged since the run; older records hold no digest of it."""
    recorded = then.get("config_sha256")
    if not recorded:
        return []
    current = atomic_files.hash_file(run / CONFIG)
    return [Input(CONFIG_KEYS, f"{CONFIG} itself", _shorten_digest(recorded), _shorten_digest(current))]


def _flatten_values(values: Values) -> Values:
    return config.flatten_keys({key: value for key, value in values.items() if key not in PROVENANCE_KEYS})


def _get_fingerprint(record: Values) -> Values:
    """Fingerprint of the base model; for an unmerge that of the merged model, which is its input."""
    return ((record.get("base") or record.get("merged") or {}).get("fingerprint")) or {}


def _compare_mapping(kind: str, then: Values | None, now: Values | None) -> Iterator[Input]:
    old, new = then or {}, now or {}
    for name in sorted({*old, *new}):
        yield Input(kind, name, _shorten_digest(old.get(name)), _shorten_digest(new.get(name)), then is not None)


def _select_packages(record: Values) -> Values:
    """Versions of the packages that shape a run's outcome; older records hold only a few of them."""
    packages = (record.get("environment") or {}).get("packages") or record.get("versions") or {}
    return {name: packages[name] for name in SHAPING if packages.get(name, "not installed") != "not installed"}


def _compare_other_packages(then: Values | None, now: Values | None) -> Iterator[Input]:
    if then is None or now is None:
        yield Input(OTHER, "other packages", None, None, known=False)
        return
    names = sorted({*then, *now} - set(SHAPING))
    yield from (Input(OTHER, name, then.get(name), now.get(name)) for name in names)


def _compare_commit(kind: str, then: Values, now: Values) -> Iterator[Input]:
    """Git commits, if at least one side has one."""
    old, new = then.get("git_commit"), now.get("git_commit")
    if old or new:
        yield Input(kind, "git commit", _shorten_digest(old), _shorten_digest(new))


def _compare_machine(then: Values, now: Values) -> Iterator[Input]:
    old, new = then.get("cpu") or {}, now.get("cpu") or {}
    yield _make_input(MACHINE, "processor", old.get("model"), new.get("model"))
    old_flags, new_flags = old.get("flags"), new.get("flags")
    if old_flags is not None and new_flags is not None and old_flags != new_flags:
        # A processor has about a hundred flags: only those on one side are named.
        old_flags, new_flags = sorted({*old_flags} - {*new_flags}), sorted({*new_flags} - {*old_flags})
        yield Input(MACHINE, "its features", _join_list(old_flags), _join_list(new_flags))
    else:
        yield _make_input(MACHINE, "its features", _join_list(old_flags), _join_list(new_flags))
    yield _make_input(MACHINE, "cores", then.get("cores"), now.get("cores"))
    known = bool(then and now)
    yield Input(MACHINE, "GPUs", _join_list(then.get("gpus")), _join_list(now.get("gpus")), known)
    yield Input(MACHINE, "driver", then.get("driver"), now.get("driver"), known)
    settings = then.get("settings") or {}, now.get("settings") or {}
    yield from (
        Input(COMPUTING, name, settings[0].get(name), settings[1].get(name), known)
        for name in sorted({*settings[0], *settings[1]})
    )


def _compare_numerics(then: Values | None, now: Values | None) -> Iterator[Input]:
    # `not_deterministic` lists what a run came across, which is an outcome and no input.
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
    """An input that every run has: known if both sides hold a value."""
    return Input(kind, name, then, now, then is not None and now is not None)


def _shorten_digest(digest: Any) -> Any:
    return digest[:DIGEST] if isinstance(digest, str) and HEX.fullmatch(digest) else digest


def _format_value(value: Any, nothing: str = "null") -> str:
    text = nothing if value is None else format_value(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def select_drifted(inputs: Iterable[Input]) -> list[Input]:
    """Those whose value has changed."""
    return [item for item in inputs if item.has_drifted]


def list_unrecorded(inputs: Iterable[Input]) -> list[str]:
    """`kind: name` of the inputs that the older record does not hold."""
    return list(dict.fromkeys(f"{item.kind}: {item.name}" for item in inputs if not item.known))


def format_rows(inputs: Iterable[Input], every: bool = False) -> list[tuple[str, str]]:
    """(kind, what has drifted) for the summary table; `every`: also what has not.

    Unchanged inputs are listed one by one if there are few of them, else counted.
    """
    kinds: dict[str, list[Input]] = {}
    for item in inputs:
        kinds.setdefault(item.kind, []).append(item)
    rows = []
    for kind, items in kinds.items():
        drifted, unchanged = select_drifted(items), [item for item in items if item.known and not item.has_drifted]
        unknown = [item for item in items if not item.known]
        if drifted:
            rows.append((f"{kind}, drifted", "; ".join(map(str, drifted))))
        if every and unchanged:
            # Of a config and of all packages the number is enough.
            counted = {CONFIG_KEYS: f"{len(unchanged)} keys", OTHER: f"{len(unchanged)} packages"}
            values = "; ".join(str(item) for item in unchanged if item.then is not None)
            rows.append((f"{kind}, the same", counted.get(kind, values)))
        if every and unknown:
            rows.append((f"{kind}, {UNKNOWN}", ", ".join(item.name for item in unknown)))
    return rows
