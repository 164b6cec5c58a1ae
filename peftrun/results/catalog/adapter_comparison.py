"""Compare two adapters module by module: the norm of each ΔW, and the cosine and distance between the two."""

from pathlib import Path
from typing import Any

from peftrun.artifacts import delta_weights
from peftrun.errors import PeftrunError


def measure_norms(folder: Path) -> dict[str, Any]:
    """Per-module ‖ΔW‖ of one adapter (`modules`), their total, and how many modules could not be measured; else `problem`."""
    try:
        weights = delta_weights.read_deltas(folder)
        norms = delta_weights.compute_delta_norms(weights)
    except (PeftrunError, OSError) as error:
        return {"problem": str(error).splitlines()[0]}
    if not norms:
        return {"problem": next(iter(weights.unmeasured.values()), "it holds no LoRA pair")}
    total = delta_weights.total_norm(norms.values())
    return {"modules": norms, "total": total, "not_measured": len(weights.unmeasured)}


def compare_adapters(first_dir: Path, second_dir: Path) -> dict[str, Any]:
    """One row per module: ‖ΔW‖ in both adapters (None: not adapted there), cosine and relative distance; else `problem`."""
    try:
        first, second = delta_weights.read_deltas(first_dir), delta_weights.read_deltas(second_dir)
        first_norms, second_norms = delta_weights.compute_delta_norms(first), delta_weights.compute_delta_norms(second)
        rows: list[dict[str, Any]] = []
        for module in {**first_norms, **second_norms}:
            rows.append(
                {"module": module, "norms": [first_norms.get(module), second_norms.get(module)], "cosine": None}
            )
            delta, other = first.found.get(module), second.found.get(module)
            if delta is None or other is None:
                continue
            # The factors A (r, in) and B (out, r) are compared without forming ΔW (out, in); a text says why they cannot be.
            comparison = delta_weights.compare_deltas(delta, other)
            if not isinstance(comparison, str):
                rows[-1] |= {"cosine": comparison["cosine"], "distance": comparison["relative_distance"]}
    except (PeftrunError, OSError) as error:
        return {"problem": str(error).splitlines()[0]}
    if not rows:
        reasons = {**first.unmeasured, **second.unmeasured}
        return {"problem": next(iter(reasons.values()), "neither holds a LoRA pair")}
    totals = [delta_weights.total_norm(norms.values()) if norms else None for norms in (first_norms, second_norms)]
    return {"rows": rows, "totals": totals, "not_measured": len(first.unmeasured) + len(second.unmeasured)}
