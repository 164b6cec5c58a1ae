"""Two adapters beside each other, module by module: how large each change of the base is, and how alike the two are."""

from pathlib import Path
from typing import Any

from peftrun.artifacts import delta_weights
from peftrun.errors import PeftrunError


def measure_norms(folder: Path) -> dict[str, Any]:
    """Module → ‖ΔW‖ of one adapter, their total, and how many modules cannot be measured; or why none can."""
    try:
        weights = delta_weights.read_deltas(folder)
        found = delta_weights.compute_delta_norms(weights)
    except (PeftrunError, OSError) as error:
        return {"problem": str(error).splitlines()[0]}
    if not found:
        return {"problem": next(iter(weights.unmeasured.values()), "it holds no LoRA pair")}
    total = delta_weights.total_norm(found.values())
    return {"modules": found, "total": total, "not_measured": len(weights.unmeasured)}


def compare_adapters(one: Path, other: Path) -> dict[str, Any]:
    """Rows of module, ‖ΔW‖ of both (None: this one leaves the module alone), cosine and distance; or why there are none."""
    try:
        first, second = delta_weights.read_deltas(one), delta_weights.read_deltas(other)
        mine, theirs = delta_weights.compute_delta_norms(first), delta_weights.compute_delta_norms(second)
        rows = [_compare_module(module, first, second, mine, theirs) for module in {**mine, **theirs}]
    except (PeftrunError, OSError) as error:
        return {"problem": str(error).splitlines()[0]}
    if not rows:
        reasons = {**first.unmeasured, **second.unmeasured}
        return {"problem": next(iter(reasons.values()), "neither holds a LoRA pair")}
    totals = [delta_weights.total_norm(found.values()) if found else None for found in (mine, theirs)]
    return {"rows": rows, "totals": totals, "not_measured": len(first.unmeasured) + len(second.unmeasured)}


def _compare_module(
    module: str, first: Any, second: Any, mine: dict[str, float], theirs: dict[str, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"module": module, "norms": [mine.get(module), theirs.get(module)], "cosine": None}
    if module in mine and module in theirs:
        found = delta_weights.compare_deltas(first.found[module], second.found[module])
        if not isinstance(found, str):
            row |= {"cosine": found["cosine"], "distance": found["relative_distance"]}
    return row
