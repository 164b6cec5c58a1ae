"""What came out of a run and what comes out of it again: the same bytes, the same weights within a tolerance, or others."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peftrun.artifacts import delta_weights
from peftrun.artifacts.run_layout import RECORD
from peftrun.config import values as config
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files, safetensors_header
from peftrun.io.safetensors_header import TensorEntry

IDENTICAL, EQUAL, DIFFERENT = "identical", "equal within tolerance", "different"
WEIGHTS = ".safetensors"
BESIDE = ("generations.jsonl", "diff.json")  # what some actions leave in the run folder itself
MEASURED = ("metrics", "adapters")  # parts of a record that hold what was measured
TIMES = ("seconds", "per_second", "runtime")
Files = dict[str, tuple[Path, str]]  # name → where it lies, its sha256 as recorded
Tensors = dict[str, tuple[Path, TensorEntry]]


@dataclass
class OutcomeDiff:
    """How two outcomes compare.

    Attributes:
        tolerance: largest difference of a weight (or, where there are none, of a figure) that counts as equal.
        verdict: identical, equal within tolerance, different.
        files: how many files are the same, and the names of those that are not.
        weights: largest and relative difference of the weights, where their bytes are not the same.
        metrics: name → the two values, of those that are not the same.
        reasons: why it is different, or how far it could not be told, in words.
    """

    tolerance: float
    verdict: str = IDENTICAL
    files: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] | None = None
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return dataclasses.asdict(self)


def compare_outcomes(then: Path, now: Path, tolerance: float) -> OutcomeDiff:
    """Two run folders of one action, by their records and by the files that these name.

    Raises: ArtifactError: neither holds anything that could be compared.
    """
    records = [atomic_files.read_json(folder / RECORD) for folder in (then, now)]
    old, new = (_collect_files(folder, record) for folder, record in zip((then, now), records, strict=True))
    measured = [_collect_figures(record) for record in records]
    if not old and not measured[0]:
        raise ArtifactError(f"{then}: this run has left neither files nor figures, so there is nothing to compare")
    other = _find_differing_files(old, new)
    found = OutcomeDiff(
        tolerance,
        files={"same": len(old) - len([name for name in other if name in old]), "other": other},
        metrics=_find_differing_figures(*measured),
    )
    if any(name.endswith(WEIGHTS) for name in old):
        _judge_weights(found, old, new)
    else:
        _judge_figures(found)
    found.reasons += [
        f"{name} has changed since the run wrote it" for name in _find_changed_since(old) if name in other
    ]
    return found


def _collect_files(run: Path, record: dict[str, Any]) -> Files:
    """By their names inside the folder that the run made, which may lie elsewhere the second time."""
    written: dict[str, str] = record.get("artifacts") or {}
    top = os.path.commonpath([os.path.dirname(name) or "." for name in written]) if written else ""
    found = {os.path.relpath(name, top): (run / name, digest) for name, digest in written.items()}
    beside = {name: (run / name, atomic_files.hash_file(run / name)) for name in BESIDE if (run / name).is_file()}
    return found | beside


def _find_differing_files(old: Files, new: Files) -> list[str]:
    return [name for name in sorted({*old, *new}) if not _is_same_file(old.get(name), new.get(name))]


def _is_same_file(old: tuple[Path, str] | None, new: tuple[Path, str] | None) -> bool:
    if old is None or new is None:
        return False
    return old[1] == new[1] or (
        old[0].suffix == ".json" and _read_json_content(old[0]) == _read_json_content(new[0]) is not None
    )


def _read_json_content(file: Path) -> str | None:
    """What a JSON file says, whatever the order of its names: PEFT once wrote sets of them as they came."""
    try:
        return json.dumps(_sort_values(json.loads(file.read_text(encoding="utf-8"))), sort_keys=True)
    except (OSError, ValueError):
        return None


def _sort_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sort_values(item) for key, item in value.items()}
    names = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return sorted(value) if names else value


def _find_changed_since(old: Files) -> Iterator[str]:
    """Names of files that are no longer what their record says."""
    yield from (
        name for name, (file, digest) in old.items() if file.is_file() and atomic_files.hash_file(file) != digest
    )


def _judge_weights(found: OutcomeDiff, old: Files, new: Files) -> None:
    if not found.files["other"]:
        return
    if not any(name.endswith(WEIGHTS) for name in found.files["other"]):
        found.verdict, found.weights = EQUAL, {"largest_difference": 0.0, "relative_difference": 0.0}
        return
    try:
        found.weights = _measure_distance(_collect_tensors(old), _collect_tensors(new))
    except (ArtifactError, OSError) as error:
        found.verdict = DIFFERENT
        found.reasons.append(f"how far the weights are apart cannot be told ({error})")
        return
    within = found.weights.get("largest_difference", math.inf) <= found.tolerance
    found.verdict = EQUAL if within else DIFFERENT
    found.reasons += [found.weights["not_comparable"]] if "not_comparable" in found.weights else []


def _collect_tensors(files: Files) -> Tensors:
    """Every tensor, by the folder it lies in and its name: files may be cut otherwise."""
    found: Tensors = {}
    for name, (file, _) in files.items():
        if name.endswith(WEIGHTS):
            found |= {
                f"{os.path.dirname(name)}/{one.name}": (file, one) for one in safetensors_header.read_header(file)
            }
    return found


def _measure_distance(old: Tensors, new: Tensors) -> dict[str, Any]:
    """Largest difference of a weight, and ‖Δ‖ by ‖then‖ over all of them."""
    alone = sorted(old.keys() ^ new.keys())
    if alone:
        return {"not_comparable": f"{len(alone)} tensors are on one side only, first: {alone[0].lstrip('/')}"}
    largest, square, norm, where = 0.0, 0.0, 0.0, ""
    for name, (file, one) in old.items():
        if one.shape != new[name][1].shape:
            shapes = f"{list(one.shape)} and {list(new[name][1].shape)}"
            return {"not_comparable": f"{name.lstrip('/')} has shape {shapes}"}
        first, second = _read_values(file, one), _read_values(*new[name])
        difference = np.nan_to_num(np.abs(first - second), nan=math.inf)
        most = float(difference.max(initial=0.0))
        if most == math.inf:
            return {"not_comparable": f"{name.lstrip('/')} holds a value that is no finite number"}
        if most > largest:
            largest, where = most, name.lstrip("/")
        square, norm = square + float((difference**2).sum()), norm + float((first**2).sum())
    relative = math.sqrt(square / norm) if norm else math.inf if square else 0.0
    return {"largest_difference": largest, "relative_difference": relative, "where": where}


def _read_values(file: Path, entry: TensorEntry) -> np.ndarray:
    """Of numbers in few bits their bytes."""
    if entry.dtype in delta_weights.DTYPES:
        return delta_weights.read_tensor(file, entry)
    raw = np.memmap(file, dtype=np.uint8, mode="r", offset=entry.begin, shape=(entry.end - entry.begin,))
    return raw.astype(float)


def _judge_figures(found: OutcomeDiff) -> None:
    """A run that wrote no weights is judged by its other files and by what it measured."""
    if not found.files["other"] and not found.metrics:
        return
    apart = max((_measure_difference(*pair) for pair in found.metrics.values()), default=0.0)
    within = apart <= found.tolerance and not found.files["other"]
    found.verdict = EQUAL if within else DIFFERENT


def _measure_difference(then: float | None, now: float | None) -> float:
    return math.inf if then is None or now is None else abs(then - now)


def _collect_figures(record: dict[str, Any]) -> dict[str, float]:
    """Every figure but times."""
    parts = {key: record[key] for key in MEASURED if record.get(key)}
    if isinstance(parts.get("adapters"), list):  # proofs of loads, one an adapter
        parts["adapters"] = {str(place): one for place, one in enumerate(parts["adapters"])}
    return {
        key.removeprefix("metrics."): float(value)
        for key, value in config.flatten_keys(parts).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith(TIMES)
    }


def _find_differing_figures(then: dict[str, float], now: dict[str, float]) -> dict[str, list[float | None]]:
    """Those that are not the same; None on a side that does not have it."""
    pairs = {key: [then.get(key), now.get(key)] for key in [*then, *(now.keys() - then.keys())]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
