"""AdamW steps of all cells at once: norms and clipping in a few operations, one kernel for each learning rate.

Each cell has an optimizer of its own, with the state that it would have alone; only its steps are taken here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.adamw import adamw

from peftrun.adapters.joint.parameter_rows import ParameterRows

MOMENTS = ("exp_avg", "exp_avg_sq")


class CellAdamW(torch.optim.AdamW):
    """AdamW of one cell. Once it is bound to a row of `ParameterRows`, `take_steps` takes its steps, and `step` does nothing."""

    row: torch.Tensor | None = None  # (width,), all parameters; None: not bound

    def bind(self, row: torch.Tensor) -> None:
        """Makes the state of each parameter a view of two rows like `row`, with the values that were loaded from a checkpoint."""
        self.row, self.moments = row, [torch.zeros_like(row) for _ in MOMENTS]
        self.steps = torch.zeros((), device=row.device)
        for parameter in [one for group in self.param_groups for one in group["params"]]:
            offset = parameter.storage_offset() - row.storage_offset()
            views = [one.as_strided(parameter.shape, parameter.stride(), offset) for one in self.moments]
            loaded = self.state.get(parameter)
            if loaded:
                for name, view in zip(MOMENTS, views, strict=True):
                    view.copy_(loaded[name])
                self.steps.copy_(loaded["step"])
            self.state[parameter] = {"step": self.steps, **dict(zip(MOMENTS, views, strict=True))}

    def step(self, closure: Any = None) -> Any:
        """torch's own step, unless bound."""
        return super().step(closure) if self.row is None else None

    def can_bind(self, row: torch.Tensor) -> bool:
        """Whether the same step is taken for every element of the row, and all parameters are in it."""
        groups = [group for group in self.param_groups if group["params"]]
        storage = row.untyped_storage().data_ptr()
        return len({group["weight_decay"] for group in groups}) == 1 and all(
            one.untyped_storage().data_ptr() == storage for group in groups for one in group["params"]
        )

    @property
    def settings(self) -> tuple[Any, ...]:
        """(learning rate, beta1, beta2, epsilon, weight decay) of the next step."""
        group = next(group for group in self.param_groups if group["params"])
        return group["lr"], *group["betas"], group["eps"], group["weight_decay"]


@dataclass(frozen=True)
class AdamWStep:
    """One cell's next optimizer step. `max_norm`: of its gradients; 0: not clipped."""

    cell: int
    optimizer: CellAdamW
    max_norm: float


@torch.no_grad()
def take_steps(rows: ParameterRows, steps: Sequence[AdamWStep]) -> torch.Tensor:
    """Clips the gradients of these cells and takes their steps.

    Returns: (steps,): the norm of each cell's gradients before clipping.
    """
    first = min(step.cell for step in steps)
    cells = slice(first, max(step.cell for step in steps) + 1)  # a view; of the cells between nothing is changed
    norms, places = rows.compute_norms(cells), [step.cell - first for step in steps]  # norms: (cells of the slice,)
    limits = [math.inf] * len(norms)
    for place, step in zip(places, steps, strict=True):
        limits[place] = step.max_norm or math.inf
    if any(map(math.isfinite, limits)):
        factors = torch.tensor(limits).to(norms.device, non_blocking=True) / (norms + 1e-6)  # as torch clips
        rows.grads[cells].mul_(factors.clamp(max=1.0)[:, None])
    same: dict[tuple[Any, ...], list[AdamWStep]] = {}
    for step in steps:
        same.setdefault(step.optimizer.settings, []).append(step)
    for (lr, beta1, beta2, eps, weight_decay), members in same.items():
        optimizers = [step.optimizer for step in members]
        adamw(
            [one.row for one in optimizers],
            [rows.grads[step.cell] for step in members],
            *([one.moments[number] for one in optimizers] for number in range(len(MOMENTS))),
            [],
            [one.steps for one in optimizers],
            fused=True, amsgrad=False, maximize=False,
            lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
        )  # fmt: skip
    return norms if len(places) == len(norms) else norms[places]
