"""Compare the outcome of a run with that of its replay: identical bytes, weights equal within a tolerance, or different."""

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peftrun.artifacts import delta_weights, records
from peftrun.artifacts.run_layout import PEFTRUN_METADATA
from peftrun.config import values as config
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files, safetensors_header
from peftrun.io.safetensors_header import TensorEntry

IDENTICAL, EQUAL, DIFFERENT = "identical", "equal within tolerance", "different"
WEIGHTS = ".safetensors"
BESIDE = ("generations.jsonl", "diff.json")  # outputs that some actions write to the run folder itself
MEASURED = ("metrics", "adapters")  # keys of a record with measured numbers
TIMES = ("seconds", "per_second", "runtime")
Files = dict[str, tuple[Path, str]]  # name → (path, sha256 as recorded)
Tensors = dict[str, tuple[Path, TensorEntry]]


@dataclass
class OutcomeDiff:
    """How two outcomes compare.

    Attributes:
        tolerance: largest absolute difference of a weight (or of a metric, for runs without weights) that counts as equal.
        verdict: identical, equal within tolerance, different.
        files: number of identical files, and the names of the others.
        weights: largest and relative difference of the weights, if their bytes differ.
        metrics: name → the two values, of those that differ.
        reasons: why the outcomes are different, or why that could not be determined.
    """

    tolerance: float
    verdict: str = IDENTICAL
    files: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] | None = None
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-serializable values for record.json."""
        return dataclasses.asdict(self)


def compare_outcomes(then: Path, now: Path, tolerance: float) -> OutcomeDiff:
    """Compare two run folders of one action, by their records and the files that these name.

    Raises: ArtifactError: the older run has neither files nor metrics to compare.
    """
    both = [records.read_record(folder) for folder in (then, now)]
    old, new = (_collect_files(folder, record) for folder, record in zip((then, now), both, strict=True))
    measured = [_collect_figures(record) for record in both]
    if not old and not measured[0]:
        raise ArtifactError(f"{then}: this run has neither files nor metrics, so there is nothing to compare")
    differing = [name for name in sorted({*old, *new}) if not _is_same_file(old.get(name), new.get(name))]
    diff = OutcomeDiff(
        tolerance,
        files={"same": len(old) - len([name for name in differing if name in old]), "other": differing},
        metrics={
            key: [measured[0].get(key), measured[1].get(key)]  # None on a side that does not have it
            for key in {**measured[0], **measured[1]}
            if measured[0].get(key) != measured[1].get(key)
        },
    )
    if any(name.endswith(WEIGHTS) for name in old):
        _judge_weights(diff, old, new)
    elif differing or diff.metrics:  # a run without weights is judged by its other files and its metrics
        pairs = diff.metrics.values()
        differences = [math.inf if first is None or second is None else abs(first - second) for first, second in pairs]
        is_equal = max(differences, default=0.0) <= diff.tolerance and not differing
        diff.verdict = EQUAL if is_equal else DIFFERENT
    for name, (file, digest) in old.items():
        if name in differing and file.is_file() and atomic_files.hash_file(file) != digest:
            diff.reasons.append(f"{name} has changed since the run wrote it")
    return diff


def _collect_files(run: Path, record: dict[str, Any]) -> Files:
    """Files by their path inside the output folder, whose name may differ between the two runs."""
    digests: dict[str, str] = record.get("artifacts") or {}
    output_dir = os.path.commonpath([os.path.dirname(name) or "." for name in digests]) if digests else ""
    files = {os.path.relpath(name, output_dir): (run / name, digest) for name, digest in digests.items()}
    extra_files = {name: (run / name, atomic_files.hash_file(run / name)) for name in BESIDE if (run / name).is_file()}
    return files | extra_files


def _is_same_file(old: tuple[Path, str] | None, new: tuple[Path, str] | None) -> bool:
    if old is None or new is None:
        return False
    return old[1] == new[1] or (
        old[0].suffix == ".json" and _read_json_content(old[0]) == _read_json_content(new[0]) is not None
    )


def _read_json_content(file: Path) -> str | None:
    """JSON as canonical text: PEFT writes sets as lists in arbitrary order, so lists of strings are sorted."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if file.name == PEFTRUN_METADATA:
            content = records.rename_keys(content)
            content.pop("task", None)  # older runs wrote none, and the config is compared itself
        return json.dumps(_sort_values(content), sort_keys=True)
    except (OSError, ValueError):
        return None


def _sort_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sort_values(item) for key, item in value.items()}
    is_name_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return sorted(value) if is_name_list else value


def _judge_weights(diff: OutcomeDiff, old: Files, new: Files) -> None:
    if not diff.files["other"]:
        return
    if not any(name.endswith(WEIGHTS) for name in diff.files["other"]):
        # Only other files differ, such as a README.
        diff.verdict, diff.weights = EQUAL, {"largest_difference": 0.0, "relative_difference": 0.0}
        return
    try:
        diff.weights = _measure_distance(_collect_tensors(old), _collect_tensors(new))
    except (ArtifactError, OSError) as error:
        diff.verdict = DIFFERENT
        diff.reasons.append(f"the distance between the weights cannot be computed ({error})")
        return
    is_equal = diff.weights.get("largest_difference", math.inf) <= diff.tolerance
    diff.verdict = EQUAL if is_equal else DIFFERENT
    diff.reasons += [diff.weights["not_comparable"]] if "not_comparable" in diff.weights else []


def _collect_tensors(files: Files) -> Tensors:
    """Every tensor by its folder and name, since the two runs may shard their files differently."""
    tensors: Tensors = {}
    for name, (file, _) in files.items():
        if name.endswith(WEIGHTS):
            tensors |= {
                f"{os.path.dirname(name)}/{entry.name}": (file, entry) for entry in safetensors_header.read_header(file)
            }
    return tensors


def _measure_distance(old: Tensors, new: Tensors) -> dict[str, Any]:
    """Largest absolute difference of a weight, and ‖now - then‖ / ‖then‖ (Frobenius, over all tensors)."""
    unmatched = sorted(old.keys() ^ new.keys())
    if unmatched:
        return {"not_comparable": f"{len(unmatched)} tensors are on one side only, first: {unmatched[0].lstrip('/')}"}
    largest, squared_difference, squared_norm, where = 0.0, 0.0, 0.0, ""
    for name, (file, entry) in old.items():
        if entry.shape != new[name][1].shape:
            shapes = f"{list(entry.shape)} and {list(new[name][1].shape)}"
            return {"not_comparable": f"{name.lstrip('/')} has shape {shapes}"}
        # One tensor of each side in memory at a time, so that models of any size can be compared.
        first, second = _read_values(file, entry), _read_values(*new[name])  # entry.shape, float
        difference = np.nan_to_num(np.abs(first - second), nan=math.inf)  # NaN would be lost by max()
        maximum = float(difference.max(initial=0.0))  # 0 for an empty tensor
        if maximum == math.inf:
            return {"not_comparable": f"{name.lstrip('/')} holds a value that is no finite number"}
        if maximum > largest:
            largest, where = maximum, name.lstrip("/")
        squared_difference += float((difference**2).sum())
        squared_norm += float((first**2).sum())
    relative = math.sqrt(squared_difference / squared_norm) if squared_norm else math.inf if squared_difference else 0.0
    return {"largest_difference": largest, "relative_difference": relative, "where": where}


def _read_values(file: Path, entry: TensorEntry) -> np.ndarray:
    """The tensor as floats; for quantized types that numpy lacks, its raw bytes (uint8, flat)."""
    if entry.dtype in delta_weights.DTYPES:
        return delta_weights.read_tensor(file, entry)
    raw = np.memmap(file, dtype=np.uint8, mode="r", offset=entry.begin, shape=(entry.end - entry.begin,))
    return raw.astype(float)


def _collect_figures(record: dict[str, Any]) -> dict[str, float]:
    """Every measured number but times, by full key."""
    measured = {key: record[key] for key in MEASURED if record.get(key)}
    if isinstance(measured.get("adapters"), list):  # load proofs, one per adapter
        measured["adapters"] = {str(position): proof for position, proof in enumerate(measured["adapters"])}
    return {
        key.removeprefix("metrics."): float(value)
        for key, value in config.flatten_keys(measured).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith(TIMES)
    }
