"""Routes each row of a batch through its own plain LoRA adapter. Same result as PEFT's routing, with fewer and larger matmuls.

In every layer PEFT gathers the rows of each adapter, multiplies them by A and B and scatters them back. Here, where each row is a single
token (all decoding steps but the first), the A of all adapters are concatenated to one matrix and their B to another: two matmuls, with a
mask between them that zeroes what belongs to other adapters. Longer rows are sliced by adapter, which copies nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.nn.functional import linear

# by name: PEFT defines the first two only if bitsandbytes is installed; torchao's is a `Linear`
QUANTIZED_LINEARS = {"Linear4bit", "Linear8bitLt", "GPTQLoraLinear", "AwqLoraLinear"}
# Multiply-adds of concatenated adapters may be at most this share of the base layers', for three choices of what to concatenate: every
# adapter of the model; the requested ones and some that were requested before; the requested ones only. Above the last limit, adapter
# by adapter is faster. Concatenating more than requested saves rebuilding the stacks for the next batch.
ALL_ADAPTERS_LIMIT, SPARE_ADAPTERS_LIMIT, REQUESTED_ADAPTERS_LIMIT = 0.25, 0.5, 1.0


@dataclass(frozen=True)
class _StackedAdapters:
    """One layer's adapters concatenated along the rank; R is the sum of their ranks.

    Attributes:
        a: (R, in).
        b: (out, R).
        scale: of each rank column: (R,).
        owner: index of the adapter that each rank column belongs to: (R,).
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: torch.Tensor
    owner: torch.Tensor

    def compute_delta(self, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """The adapters' delta (rows, …, out) for x (rows, …, in); `others` masks rank columns of adapters that are not the row's."""
        hidden = linear(x.to(self.a.dtype), self.a)  # (rows, …, R)
        return linear(hidden.masked_fill_(others, 0).mul_(self.scale), self.b)


class AdapterRouter:
    """Routing for the LoRA layers and adapters that a PEFT model has now. It copies weights: after a hot swap build a new one."""

    def __init__(self, net: Any) -> None:
        self._layers = [layer for layer in net.modules() if isinstance(layer, LoraLayer)]
        self._wrappers = [module for module in net.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        self._routable: dict[str, bool] = {}
        names = dict.fromkeys(name for layer in self._layers for name in layer.lora_A)
        self._all = [name for name in names if self.can_route([name])]
        self._stacked: list[str] = []  # adapters in the current stacks, in order of their index
        self._stacks: list[_StackedAdapters | None] = []  # one per layer

    def can_route(self, adapters: Iterable[str]) -> bool:
        """Whether all layers of these LoRA adapters are plain: no embedding, no convolution, no bias, no variant."""
        for name in adapters:
            if name not in self._routable:
                self._routable[name] = all(_is_plain_lora(layer, name) for layer in self._layers)
        return all(self._routable[name] for name in adapters)

    @contextmanager
    def route_rows(self, names: Sequence[str]) -> Iterator[None]:
        """Within the block, row i of every batch goes through adapter `names[i]`, or the base model alone if there is none of that name."""
        adapters = [name for name in dict.fromkeys(names) if name in self._all]
        stacks = self._get_stacks(adapters) if len(adapters) > 1 else [None] * len(self._layers)
        assignment = _RowAssignment(names, self._stacked)
        for layer, stack in zip(self._layers, stacks, strict=True):
            layer.__dict__["forward"] = _make_forward(layer, stack, assignment)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.__dict__["forward"]

    @contextmanager
    def disable_saved_modules(self) -> Iterator[None]:
        """Within the block, fully trained modules and tokens are skipped: adapters that share a batch have none."""
        enabled = [wrapper for wrapper in self._wrappers if not wrapper.disable_adapters]
        for wrapper in enabled:
            wrapper.enable_adapters(False)
        try:
            yield
        finally:
            for wrapper in enabled:
                wrapper.enable_adapters(True)

    def _get_stacks(self, names: list[str]) -> list[_StackedAdapters | None]:
        """Stacks of all layers with these adapters, and with others that may be requested next if that costs little."""
        missing, spare = set(names) - set(self._stacked), set(self._stacked) - set(names)
        if missing or (spare and self._relative_cost(self._stacked) > SPARE_ADAPTERS_LIMIT):
            candidates = (
                (self._all, ALL_ADAPTERS_LIMIT),
                (list(dict.fromkeys([*self._stacked, *names])), SPARE_ADAPTERS_LIMIT),
                (names, REQUESTED_ADAPTERS_LIMIT),
            )
            affordable = (adapters for adapters, limit in candidates if self._relative_cost(adapters) <= limit)
            self._stacked = next(affordable, [])
            shared: dict[Any, Any] = {}
            self._stacks = [_stack_adapters(layer, self._stacked, shared) for layer in self._layers]
        return self._stacks

    def _relative_cost(self, names: list[str]) -> float:
        """Multiply-adds of these adapters, as a share of those of the base layers that they change."""
        ranks = [sum(layer.r[name] for name in names if name in layer.lora_A) for layer in self._layers]
        sizes = [
            (layer.in_features, layer.out_features, rank)
            for layer, rank in zip(self._layers, ranks, strict=True)
            if rank
        ]
        return sum(rank * (i + o) for i, o, rank in sizes) / sum(i * o for i, o, _ in sizes)


class _RowAssignment:
    """The adapter of each row of a batch, in the forms that layers need.

    Attributes:
        count: rows of the batch.
        rows: adapter → index of its rows.
    """

    def __init__(self, names: Sequence[str], stacked: list[str]) -> None:
        self.count = len(names)
        self.rows: dict[str, Any] = {}
        for adapter in dict.fromkeys(names):
            rows = [row for row, name in enumerate(names) if name == adapter]
            # a slice where the rows are consecutive: a view, where a list would copy
            self.rows[adapter] = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows
        # (rows,): index in the stacks; -1 for the base model and adapters that are not stacked
        self._indices = torch.tensor([stacked.index(name) if name in stacked else -1 for name in names])
        self._masks: dict[tuple[Any, ...], torch.Tensor] = {}

    def mask_others(self, stack: _StackedAdapters, dims: int) -> torch.Tensor:
        """(rows, 1, …, R) with `dims` dimensions: True for rank columns of adapters that are not the row's."""
        key = (id(stack.owner), dims)  # layers share `owner`, and so the mask
        if key not in self._masks:
            indices = self._indices.to(stack.owner.device)
            mask = stack.owner[None, :] != indices[:, None]  # (rows, R)
            self._masks[key] = mask.view(self.count, *[1] * (dims - 2), -1)
        return self._masks[key]


def _is_plain_lora(layer: Any, name: str) -> bool:
    if name in layer.lora_embedding_A:
        return False
    if name not in layer.lora_A:
        return True
    plain = (isinstance(layer, Linear) or type(layer).__name__ in QUANTIZED_LINEARS) and "forward" not in layer.__dict__
    a, b = layer.lora_A[name], layer.lora_B[name]
    # accelerate brings offloaded weights back for PEFT's own forward only
    in_memory = not (a.weight.is_meta or b.weight.is_meta)
    return plain and in_memory and not layer.merged and name not in layer.lora_variant and b.bias is None


def _stack_adapters(layer: Any, names: list[str], shared: dict[Any, Any]) -> _StackedAdapters | None:
    """None if the layer has none of the adapters, or one with infinities or NaN: the mask's zeros times these would not be zero."""
    present = [(index, name) for index, name in enumerate(names) if name in layer.lora_A]
    if not present:
        return None
    a = torch.cat([layer.lora_A[name].weight for _, name in present])  # (R, in)
    b = torch.cat([layer.lora_B[name].weight for _, name in present], dim=1)  # (out, R)
    if not b.isfinite().all():
        return None
    columns = [(index, layer.scaling[name]) for index, name in present for _ in range(len(layer.lora_A[name].weight))]
    key = (tuple(columns), a.dtype, a.device)
    if key not in shared:  # most layers have the same ranks and scales, and so share the mask
        owner, scale = zip(*columns, strict=True)
        shared[key] = a.new_tensor(scale), torch.tensor(owner, device=a.device)
    return _StackedAdapters(a, b, *shared[key])


def _make_forward(layer: Any, stack: _StackedAdapters | None, assignment: _RowAssignment) -> Any:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = layer.base_layer(x, *args, **kwargs)  # (rows, …, out)
        if len(x) != assignment.count:
            raise RuntimeError(
                f"a layer got {len(x)} rows for a batch of {assignment.count}: they cannot be assigned to adapters"
            )
        if stack is not None and x.shape[1:-1].numel() == 1:  # one token per row: (rows, in) or (rows, 1, in)
            return result + stack.compute_delta(x, assignment.mask_others(stack, x.dim())).to(result.dtype)
        for name, rows in assignment.rows.items():
            if name in layer.lora_A:
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight  # (r, in), (out, r)
                delta = linear(linear(x[rows].to(a.dtype), a), b).mul_(layer.scaling[name])
                result[rows] += delta.to(result.dtype)
        return result

    return forward
