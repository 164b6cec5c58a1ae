"""Compare two adapters: settings, modules, distance, and the spaces they work in. Nothing heavy is imported."""

from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import adapter_folder, adapter_tensors, delta_weights
from peftrun.artifacts.delta_weights import AdapterDeltas
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.config.schema.run import RunSpec
from peftrun.io import atomic_files
from peftrun.result import RunResult

MAX_ROWS = 5


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """How two adapters differ, in the record and in `diff.json`; the largest distances as a summary.

    Distances are of ΔW = scaling·B·A; overlaps are those of Hu et al. 2021, arXiv:2106.09685, section 7.2.
    """
    (a, folder_a), (b, folder_b) = (
        (name, adapter_folder.resolve_adapter_dir(path, name)) for name, path in spec.adapter.items()
    )
    found = {"a": {"name": a, "folder": str(folder_a)}, "b": {"name": b, "folder": str(folder_b)}}
    found |= compare_adapters(folder_a, folder_b)
    atomic_files.write_json(out_dir / "diff.json", found)
    summary = [
        ("compared", f"a: {a}, b: {b}"),
        *_build_summary(found),
        ("written", console.shorten_path(out_dir / "diff.json")),
    ]
    return RunResult(out_dir, {"diff": found}, summary=summary)


def compare_adapters(folder_a: Path, folder_b: Path) -> dict[str, Any]:
    """Everything that two adapter folders differ in.

    Raises: PeftrunError: a file in one of them is broken.
    """
    one, other = delta_weights.read_deltas(folder_a), delta_weights.read_deltas(folder_b)
    both = {
        module: delta_weights.compare_deltas(pair, other.found[module])
        for module, pair in one.found.items()
        if module in other.found
    }
    modules = {module: row for module, row in both.items() if not isinstance(row, str)}
    beside = adapter_tensors.compare_extra_tensors((folder_a, folder_b), (one, other))
    tensors = {name: row for name, row in beside.items() if not isinstance(row, str)}
    names_a, names_b = (
        adapter_tensors.list_extra_names(folder, found) for folder, found in ((folder_a, one), (folder_b, other))
    )
    return {
        "distance_of": "scaling·B·A" + (", without DoRA's magnitudes" if _uses_dora(folder_a, folder_b) else ""),
        "same_base": _has_same_base(folder_a, folder_b),
        "config": _diff_configs(folder_a, folder_b),
        "only_in_a": _find_unshared_modules(one, other),
        "only_in_b": _find_unshared_modules(other, one),
        "tensors_only_in_a": sorted(names_a - names_b),
        "tensors_only_in_b": sorted(names_b - names_a),
        "totals": _compute_totals(modules),
        "modules": modules,
        "tensor_totals": _compute_distances(tensors) if tensors else {},
        "tensors": tensors,
        "not_comparable": {
            **{f"a: {module}": reason for module, reason in one.unmeasured.items()},
            **{f"b: {module}": reason for module, reason in other.unmeasured.items()},
            **{name: row for name, row in (both | beside).items() if isinstance(row, str)},
        },
    }


def _find_unshared_modules(one: AdapterDeltas, other: AdapterDeltas) -> list[str]:
    there = other.found.keys() | other.unmeasured.keys()
    return [] if "*" in one.unmeasured.keys() | there else sorted((one.found.keys() | one.unmeasured.keys()) - there)


def _has_same_base(*folders: Path) -> bool | None:
    one, other = (adapter_folder.read_peftrun_metadata(folder) for folder in folders)
    if one is None or other is None:
        return None
    return bool(one["base"]["fingerprint"]["weights"] == other["base"]["fingerprint"]["weights"])


def _uses_dora(*folders: Path) -> bool:
    return any(atomic_files.read_json(folder / ADAPTER_CONFIG).get("use_dora") for folder in folders)


def _diff_configs(*folders: Path) -> dict[str, list[Any]]:
    one, other = (atomic_files.read_json(folder / ADAPTER_CONFIG) for folder in folders)
    pairs = {
        key: [_sort_if_list(one.get(key)), _sort_if_list(other.get(key))] for key in sorted(one.keys() | other.keys())
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _sort_if_list(value: Any) -> Any:
    """PEFT writes sets of names as lists in any order."""
    return sorted(value, key=str) if isinstance(value, list) else value


def _compute_totals(modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if not modules:
        return {"modules": 0}
    rows = modules.values()
    return {
        "modules": len(rows),
        **_compute_distances(modules),
        "overlap_B": _compute_mean(row["overlap_B"] for row in rows),
        "overlap_A": _compute_mean(row["overlap_A"] for row in rows),
    }


def _compute_distances(rows: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Of everything together."""
    norm_a, norm_b, distance = (
        delta_weights.total_norm(row[key] for row in rows.values()) for key in ("norm_a", "norm_b", "distance")
    )
    return delta_weights.compute_distances(norm_a, norm_b, sum(row["inner"] for row in rows.values()), distance)


def _compute_mean(values: Any) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _build_summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    same = {True: "the same", False: "not the same", None: "not known"}[found["same_base"]]
    rows = [("base", same), ("settings", _format_settings(found["config"]))]
    rows += [
        (
            f"only in {side}",
            f"{len(names)} modules: {', '.join(names[:MAX_ROWS])}{', …' if len(names) > MAX_ROWS else ''}",
        )
        for side, names in (("a", found["only_in_a"]), ("b", found["only_in_b"]))
        if names
    ]
    rows += [
        (
            f"only in {side}",
            f"{len(names)} tensors: {', '.join(names[:MAX_ROWS])}{', …' if len(names) > MAX_ROWS else ''}",
        )
        for side, names in (("a", found["tensors_only_in_a"]), ("b", found["tensors_only_in_b"]))
        if names
    ]
    ordered = sorted(found["modules"].items(), key=lambda item: -item[1]["distance"])
    rows += [(f"ΔW {module}", _format_distances(row)) for module, row in ordered[:MAX_ROWS]]
    if ordered:
        rows.append((f"all {len(ordered)} shared modules", _format_distances(found["totals"])))
        rows.append(("ΔW is", found["distance_of"]))
    rows += _format_tensors(found)
    reasons = list(found["not_comparable"].items())
    rows += [("not comparable", f"{module}: {reason}") for module, reason in reasons[:MAX_ROWS]]
    return [*rows, ("not comparable", f"{len(reasons) - MAX_ROWS} more")] if len(reasons) > MAX_ROWS else rows


def _format_tensors(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What both hold beside the pairs: modules trained in full, biases, token rows, embeddings."""
    ordered = sorted(found["tensors"].items(), key=lambda item: -item[1]["distance"])
    rows = [(name, _format_distances(row)) for name, row in ordered[:MAX_ROWS]]
    return [*rows, (f"all {len(ordered)} other tensors", _format_distances(found["tensor_totals"]))] if ordered else []


def _format_settings(config: dict[str, list[Any]]) -> str:
    return ", ".join(f"{key}: {one} → {other}" for key, (one, other) in config.items()) or "the same"


def _format_distances(row: dict[str, Any]) -> str:
    shown = {
        "‖a‖": row["norm_a"], "‖b‖": row["norm_b"], "‖a−b‖": row["distance"], "relative": row["relative_distance"],
        "cosine": row["cosine"], "overlap of B": row.get("overlap_B"), "of A": row.get("overlap_A"),
    }  # fmt: skip
    return console.format_figures({key: value for key, value in shown.items() if value is not None})
