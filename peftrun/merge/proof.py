"""The proof of a merge: what was written, read again, answers as the adapter on its base did."""

from typing import Any

import torch

from peftrun.adapter import probe
from peftrun.errors import ProofError


def compare(adapted: torch.Tensor, merged: torch.Tensor, plain: torch.Tensor, dtype: str) -> dict[str, Any]:
    """Figures of the comparison of probe logits, each computed in float32.

    Args: adapted: adapter on base. merged: the written files. plain: the base alone. dtype: what was written.
    Raises: ProofError: the merged model is farther from the adapted one than rounding to `dtype` explains, or is
        not told from the base.
    """
    limit = probe.TOLERANCE[dtype]
    figures = {**probe.compare(adapted, merged), "tolerance": limit}
    from_base = probe.compare(plain, merged)["max_logit_difference"]
    difference = figures["max_logit_difference"]
    if not difference <= limit:
        raise ProofError(
            f"the merged model is not the adapter on its base: max |Δlogit| {difference:.3g}, tolerance {limit:g} for {dtype}; "
            "what was written is kept under a .rejected name. Write it with action.dtype=float32, or report this",
            facts={"merge": figures},
        )
    if from_base == 0.0 and probe.compare(plain, adapted)["max_logit_difference"] > 0.0:
        raise ProofError(
            "the merged model equals the base: the adapter was not merged; what was written is kept under a .rejected name",
            facts={"merge": figures},
        )
    return {**figures, "max_logit_difference_from_base": from_base}
