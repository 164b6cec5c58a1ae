"""Compare two adapters: settings, modules, distance, and the spaces they work in. Nothing heavy is imported."""

from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import adapter_folder, adapter_tensors, delta_weights
from peftrun.artifacts.delta_weights import Weights
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.config.schema.run import RunSpec
from peftrun.io import atomic_files
from peftrun.result import RunResult

LARGEST = 5


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """How two adapters differ, in the record and in `diff.json`; the largest distances as a summary.

    Distances are of ΔW = scaling·B·A; overlaps are those of Hu et al. 2021, arXiv:2106.09685, section 7.2.
    """
    (a, folder_a), (b, folder_b) = ((name, adapter_folder.locate(path, name)) for name, path in spec.adapter.items())
    found = {"a": {"name": a, "folder": str(folder_a)}, "b": {"name": b, "folder": str(folder_b)}}
    found |= compare(folder_a, folder_b)
    atomic_files.write_json(out_dir / "diff.json", found)
    summary = [("compared", f"a: {a}, b: {b}"), *_summary(found), ("written", console.short(out_dir / "diff.json"))]
    return RunResult(out_dir, {"diff": found}, summary=summary)


def compare(folder_a: Path, folder_b: Path) -> dict[str, Any]:
    """Everything that two adapter folders differ in.

    Raises: PeftrunError: a file in one of them is broken.
    """
    one, other = delta_weights.pairs(folder_a), delta_weights.pairs(folder_b)
    both = {
        module: delta_weights.comparison(pair, other.found[module])
        for module, pair in one.found.items()
        if module in other.found
    }
    modules = {module: row for module, row in both.items() if not isinstance(row, str)}
    beside = adapter_tensors.comparisons((folder_a, folder_b), (one, other))
    tensors = {name: row for name, row in beside.items() if not isinstance(row, str)}
    names_a, names_b = (
        adapter_tensors.names_beside_pairs(folder, found) for folder, found in ((folder_a, one), (folder_b, other))
    )
    return {
        "distance_of": "scaling·B·A" + (", without DoRA's magnitudes" if _dora(folder_a, folder_b) else ""),
        "same_base": _same_base(folder_a, folder_b),
        "config": _config(folder_a, folder_b),
        "only_in_a": _only(one, other),
        "only_in_b": _only(other, one),
        "tensors_only_in_a": sorted(names_a - names_b),
        "tensors_only_in_b": sorted(names_b - names_a),
        "totals": _totals(modules),
        "modules": modules,
        "tensor_totals": _distances(tensors) if tensors else {},
        "tensors": tensors,
        "not_comparable": {
            **{f"a: {module}": reason for module, reason in one.unmeasured.items()},
            **{f"b: {module}": reason for module, reason in other.unmeasured.items()},
            **{name: row for name, row in (both | beside).items() if isinstance(row, str)},
        },
    }


def _only(one: Weights, other: Weights) -> list[str]:
    there = other.found.keys() | other.unmeasured.keys()
    return [] if "*" in one.unmeasured.keys() | there else sorted((one.found.keys() | one.unmeasured.keys()) - there)


def _same_base(*folders: Path) -> bool | None:
    one, other = (adapter_folder.facts(folder) for folder in folders)
    if one is None or other is None:
        return None
    return bool(one["base"]["fingerprint"]["weights"] == other["base"]["fingerprint"]["weights"])


def _dora(*folders: Path) -> bool:
    return any(atomic_files.read_json(folder / ADAPTER_CONFIG).get("use_dora") for folder in folders)


def _config(*folders: Path) -> dict[str, list[Any]]:
    one, other = (atomic_files.read_json(folder / ADAPTER_CONFIG) for folder in folders)
    pairs = {key: [_ordered(one.get(key)), _ordered(other.get(key))] for key in sorted(one.keys() | other.keys())}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _ordered(value: Any) -> Any:
    """PEFT writes sets of names as lists in any order."""
    return sorted(value, key=str) if isinstance(value, list) else value


def _totals(modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if not modules:
        return {"modules": 0}
    rows = modules.values()
    return {
        "modules": len(rows),
        **_distances(modules),
        "overlap_B": _mean(row["overlap_B"] for row in rows),
        "overlap_A": _mean(row["overlap_A"] for row in rows),
    }


def _distances(rows: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Of everything together."""
    norm_a, norm_b, distance = (
        delta_weights.total(row[key] for row in rows.values()) for key in ("norm_a", "norm_b", "distance")
    )
    return delta_weights.distances(norm_a, norm_b, sum(row["inner"] for row in rows.values()), distance)


def _mean(values: Any) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    same = {True: "the same", False: "not the same", None: "not known"}[found["same_base"]]
    rows = [("base", same), ("settings", _settings(found["config"]))]
    rows += [
        (
            f"only in {side}",
            f"{len(names)} modules: {', '.join(names[:LARGEST])}{', …' if len(names) > LARGEST else ''}",
        )
        for side, names in (("a", found["only_in_a"]), ("b", found["only_in_b"]))
        if names
    ]
    rows += [
        (
            f"only in {side}",
            f"{len(names)} tensors: {', '.join(names[:LARGEST])}{', …' if len(names) > LARGEST else ''}",
        )
        for side, names in (("a", found["tensors_only_in_a"]), ("b", found["tensors_only_in_b"]))
        if names
    ]
    ordered = sorted(found["modules"].items(), key=lambda item: -item[1]["distance"])
    rows += [(f"ΔW {module}", _figures(row)) for module, row in ordered[:LARGEST]]
    if ordered:
        rows.append((f"all {len(ordered)} shared modules", _figures(found["totals"])))
        rows.append(("ΔW is", found["distance_of"]))
    rows += _tensor_rows(found)
    reasons = list(found["not_comparable"].items())
    rows += [("not comparable", f"{module}: {reason}") for module, reason in reasons[:LARGEST]]
    return [*rows, ("not comparable", f"{len(reasons) - LARGEST} more")] if len(reasons) > LARGEST else rows


def _tensor_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What both hold beside the pairs: modules trained in full, biases, token rows, embeddings."""
    ordered = sorted(found["tensors"].items(), key=lambda item: -item[1]["distance"])
    rows = [(name, _figures(row)) for name, row in ordered[:LARGEST]]
    return [*rows, (f"all {len(ordered)} other tensors", _figures(found["tensor_totals"]))] if ordered else []


def _settings(config: dict[str, list[Any]]) -> str:
    return ", ".join(f"{key}: {one} → {other}" for key, (one, other) in config.items()) or "the same"


def _figures(row: dict[str, Any]) -> str:
    shown = {
        "‖a‖": row["norm_a"], "‖b‖": row["norm_b"], "‖a−b‖": row["distance"], "relative": row["relative_distance"],
        "cosine": row["cosine"], "overlap of B": row.get("overlap_B"), "of A": row.get("overlap_A"),
    }  # fmt: skip
    return console.figures({key: value for key, value in shown.items() if value is not None})
