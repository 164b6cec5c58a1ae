"""Compare two adapters: settings, modules, distance of ΔW, and overlap of their subspaces. No torch is imported."""

from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import adapter_folder, adapter_tensors, delta_weights
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.delta_weights import AdapterDeltas
from peftrun.config.schema.method_traits import MODULE_SETS
from peftrun.config.schema.run import RunSpec
from peftrun.formatting import format_metrics
from peftrun.io import atomic_files
from peftrun.result import RunResult

MAX_ROWS = 5


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes the comparison to the record and to `diff.json`; the summary shows the largest distances.

    Distances are of ΔW = scaling·B·A; overlaps are those of Hu et al. 2021, arXiv:2106.09685, section 7.2.
    """
    a, b = adapter_folder.resolve_adapters(spec.adapter).values()
    comparison = {"a": {"name": a.name, "folder": str(a.folder)}, "b": {"name": b.name, "folder": str(b.folder)}}
    comparison |= compare_adapters(a, b)
    atomic_files.write_json(out_dir / "diff.json", comparison)
    summary = [
        ("compared", f"a: {a.name}, b: {b.name}"),
        *_build_summary(comparison),
        ("written", console.shorten_path(out_dir / "diff.json")),
    ]
    return RunResult(out_dir, {"diff": comparison}, summary=summary)


def compare_adapters(a: AdapterRef, b: AdapterRef) -> dict[str, Any]:
    """All differences between two adapters.

    Raises: PeftrunError: a file in one of them is broken.
    """
    # Where a pair cannot be compared, the comparison returns the reason as a string in place of a row of figures.
    deltas_a, deltas_b = delta_weights.read_deltas(a.folder), delta_weights.read_deltas(b.folder)
    shared = {
        module: delta_weights.compare_deltas(pair, deltas_b.found[module])
        for module, pair in deltas_a.found.items()
        if module in deltas_b.found
    }
    uses_dora = any(adapter.config.get("use_dora") for adapter in (a, b))
    modules = {module: row for module, row in shared.items() if not isinstance(row, str)}
    # Tensors outside of A/B pairs: fully trained modules, biases, token rows, embeddings.
    extra = adapter_tensors.compare_extra_tensors((a, b), (deltas_a, deltas_b))
    tensors = {name: row for name, row in extra.items() if not isinstance(row, str)}
    names_a, names_b = (
        adapter_tensors.list_extra_names(adapter, deltas) for adapter, deltas in ((a, deltas_a), (b, deltas_b))
    )
    metadata = [a.metadata, b.metadata]
    digests = [item["base"]["fingerprint"]["weights"] for item in metadata if item is not None]
    return {
        "distance_of": "scaling·B·A" + (", without DoRA's magnitudes" if uses_dora else ""),
        "same_base": None if None in metadata else digests[0] == digests[1],
        "config": _diff_configs(a.config, b.config),
        "only_in_a": _find_unshared_modules(deltas_a, deltas_b),
        "only_in_b": _find_unshared_modules(deltas_b, deltas_a),
        "tensors_only_in_a": sorted(names_a - names_b),
        "tensors_only_in_b": sorted(names_b - names_a),
        "totals": _compute_totals(modules),
        "modules": modules,
        "tensor_totals": _compute_distances(tensors) if tensors else {},
        "tensors": tensors,
        "not_comparable": {
            **{f"a: {module}": reason for module, reason in deltas_a.unmeasured.items()},
            **{f"b: {module}": reason for module, reason in deltas_b.unmeasured.items()},
            **{name: row for name, row in (shared | extra).items() if isinstance(row, str)},
        },
    }


def _find_unshared_modules(deltas: AdapterDeltas, others: AdapterDeltas) -> list[str]:
    other_names = others.found.keys() | others.unmeasured.keys()
    # "*" stands for all modules of an adapter whose method has no B·A, so single ones are not compared.
    return (
        []
        if "*" in deltas.unmeasured.keys() | other_names
        else sorted((deltas.found.keys() | deltas.unmeasured.keys()) - other_names)
    )


def _diff_configs(config_a: dict[str, Any], config_b: dict[str, Any]) -> dict[str, list[Any]]:
    pairs = {
        key: [_sort_modules(key, config_a.get(key)), _sort_modules(key, config_b.get(key))]
        for key in sorted(config_a.keys() | config_b.keys())
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _sort_modules(key: str, value: Any) -> Any:
    """The value, in a fixed order if it names modules: PEFT stores sets of their names as lists in arbitrary order."""
    return sorted(value, key=str) if key in MODULE_SETS and isinstance(value, list) else value


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
    """Distances of all modules together: norms add in squares, so each module is one block of a single long vector."""
    norm_a, norm_b, distance = (
        delta_weights.total_norm(row[key] for row in rows.values()) for key in ("norm_a", "norm_b", "distance")
    )
    return delta_weights.compute_distances(norm_a, norm_b, sum(row["inner"] for row in rows.values()), distance)


def _compute_mean(values: Any) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _build_summary(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    verdict = {True: "the same", False: "not the same", None: "not known"}[comparison["same_base"]]
    settings = ", ".join(f"{key}: {before} → {after}" for key, (before, after) in comparison["config"].items())
    rows = [("base", verdict), ("settings", settings or "the same")]
    for kind, key in (("modules", "only_in_"), ("tensors", "tensors_only_in_")):
        for side in ("a", "b"):
            names = comparison[f"{key}{side}"]
            if names:
                shown = ", ".join(names[:MAX_ROWS]) + (", …" if len(names) > MAX_ROWS else "")
                rows.append((f"only in {side}", f"{len(names)} {kind}: {shown}"))
    # Largest distance first: the modules in which the adapters differ most.
    ordered = sorted(comparison["modules"].items(), key=lambda item: -item[1]["distance"])
    rows += [(f"ΔW {module}", _format_distances(row)) for module, row in ordered[:MAX_ROWS]]
    if ordered:
        rows.append((f"all {len(ordered)} shared modules", _format_distances(comparison["totals"])))
        rows.append(("ΔW is", comparison["distance_of"]))
    tensors = sorted(comparison["tensors"].items(), key=lambda item: -item[1]["distance"])
    rows += [(name, _format_distances(row)) for name, row in tensors[:MAX_ROWS]]
    if tensors:
        rows.append((f"all {len(tensors)} other tensors", _format_distances(comparison["tensor_totals"])))
    reasons = list(comparison["not_comparable"].items())
    rows += [("not comparable", f"{module}: {reason}") for module, reason in reasons[:MAX_ROWS]]
    return [*rows, ("not comparable", f"{len(reasons) - MAX_ROWS} more")] if len(reasons) > MAX_ROWS else rows


def _format_distances(row: dict[str, Any]) -> str:
    shown = {
        "‖a‖": row["norm_a"], "‖b‖": row["norm_b"], "‖a−b‖": row["distance"], "relative": row["relative_distance"],
        "cosine": row["cosine"], "overlap of B": row.get("overlap_B"), "of A": row.get("overlap_A"),
    }  # fmt: skip
    return format_metrics({key: value for key, value in shown.items() if value is not None})
