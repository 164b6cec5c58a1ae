"""Routes each row of a batch through its own plain LoRA adapter. Same result as PEFT's routing, with fewer and larger matmuls.

In every layer PEFT gathers the rows of each adapter, multiplies them by A and B and scatters them back. Here the adapters of a layer are
stacked. Where each row is a single token (all decoding steps but the first) the stack is one matrix A and one B: two matmuls, with a mask
between them that zeroes what belongs to other adapters. Longer rows of a few adapters are sliced by adapter, which copies nothing; rows of
many are multiplied by the A and B of each row, gathered from the stack. So the operations of a layer do not grow with adapters or rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
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
MAX_SLICES = 4  # adapters of a batch whose rows are computed one adapter after another


@dataclass(frozen=True)
class _StackedAdapters:
    """One layer's adapters: n of them and one of zeros for rows of the base model, padded with zeros to the largest rank r.

    Attributes:
        a: (n + 1, r, in).
        b: (n + 1, r, out), times the scaling.
        is_concatenated: whether single tokens pass through all of them at once.
    """

    a: torch.Tensor
    b: torch.Tensor
    is_concatenated: bool

    def compute_masked(self, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """The adapters' delta (rows, …, out) for x (rows, …, in); `others` masks rank columns of adapters that are not the row's."""
        hidden = linear(x.to(self.a.dtype), self._concatenated[0])  # (rows, …, n · r)
        return linear(hidden.masked_fill_(others, 0), self._concatenated[1])

    @cached_property
    def _concatenated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views: (n · r, in), (out, n · r)."""
        return self.a[:-1].flatten(0, 1), self.b[:-1].flatten(0, 1).T

    def compute_gathered(self, x: torch.Tensor, adapters: torch.Tensor) -> torch.Tensor:
        """The same by the A and B of each row. Args: adapters: index of each row's: (rows,)."""
        a, b = self.a.index_select(0, adapters), self.b.index_select(0, adapters)  # (rows, r, in), (rows, r, out)
        tokens = x.reshape(len(adapters), -1, x.shape[-1]).to(a.dtype)  # (rows, T, in)
        return torch.bmm(torch.bmm(tokens, a.mT), b).reshape(*x.shape[:-1], -1)


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
        stacks = self._get_stacks(adapters) if len(adapters) > 1 else [None] * len(self._layers)  # one adapter: no copy
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
            affordable_names = next(affordable, None)
            self._stacked = affordable_names or names
            self._stacks = [_stack_adapters(layer, self._stacked, bool(affordable_names)) for layer in self._layers]
        return self._stacks

    def _relative_cost(self, names: list[str]) -> float:
        """Multiply-adds of these adapters, as a share of those of the base layers that they change."""
        # each is padded to the largest rank, and absent ones are zeros
        ranks = [
            len(names) * max((layer.r[name] for name in names if name in layer.lora_A), default=0)
            for layer in self._layers
        ]
        sizes = [
            (layer.in_features, layer.out_features, rank)
            for layer, rank in zip(self._layers, ranks, strict=True)
            if rank
        ]
        return sum(rank * (i + o) for i, o, rank in sizes) / sum(i * o for i, o, _ in sizes)


class _RowAssignment:
    """The adapter of each row of a batch, in the forms that layers need, each made once for all layers and passes.

    Attributes:
        count: rows of the batch.
        adapters: of the batch, in order of their first row.
    """

    def __init__(self, names: Sequence[str], stacked: list[str]) -> None:
        self.count, self.adapters = len(names), list(dict.fromkeys(names))
        self._names, self._num_stacked = names, len(stacked)
        self._indices = torch.tensor([stacked.index(name) if name in stacked else len(stacked) for name in names])
        self._made: dict[tuple[Any, ...], Any] = {}

    def get_rows(self, adapter: str, device: torch.device) -> slice | torch.Tensor:
        """The rows of an adapter: a slice, which copies nothing, where they are consecutive, otherwise their indices."""
        return self._make_once(("rows", adapter, device), lambda: self._find_rows(adapter, device))

    def get_indices(self, device: torch.device) -> torch.Tensor:
        """(rows,): index of each row's adapter in the stacks; the last for rows of the base model."""
        return self._make_once(("indices", device), lambda: self._indices.to(device))

    def mask_others(self, rank: int, dims: int, device: torch.device) -> torch.Tensor:
        """(rows, 1, …, n · rank) with `dims` dimensions: True for rank columns of adapters that are not the row's."""

        def compare() -> torch.Tensor:
            owner = torch.arange(self._num_stacked, device=device).repeat_interleave(rank)  # (n · rank,)
            mask = owner[None, :] != self.get_indices(device)[:, None]
            return mask.view(self.count, *[1] * (dims - 2), -1)

        return self._make_once(("mask", rank, dims, device), compare)

    def _find_rows(self, adapter: str, device: torch.device) -> slice | torch.Tensor:
        rows = [row for row, name in enumerate(self._names) if name == adapter]
        if rows[-1] - rows[0] + 1 == len(rows):
            return slice(rows[0], rows[-1] + 1)
        return torch.tensor(rows, device=device)

    def _make_once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


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


def _stack_adapters(layer: Any, names: list[str], concatenate: bool) -> _StackedAdapters | None:
    """The adapters `names`, in this order; None if the layer has none of them. `concatenate`: where their numbers allow it."""
    present = {index: name for index, name in enumerate(names) if name in layer.lora_A}
    if not present:
        return None
    first_a, first_b = (factors[next(iter(present.values()))].weight for factors in (layer.lora_A, layer.lora_B))
    rank = max(len(layer.lora_A[name].weight) for name in present.values())
    a = first_a.new_zeros(len(names) + 1, rank, first_a.shape[1])
    b = first_b.new_zeros(len(names) + 1, rank, first_b.shape[0])
    for index, name in present.items():
        factor = layer.lora_A[name].weight  # (rank of the adapter, in)
        a[index, : len(factor)] = factor
        b[index, : len(factor)] = layer.lora_B[name].weight.T * layer.scaling[name]
    # the mask's zeros times infinities or NaN would not be zero
    return _StackedAdapters(a, b, concatenate and bool(b.isfinite().all()))


def _make_forward(layer: Any, stack: _StackedAdapters | None, assignment: _RowAssignment) -> Any:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = layer.base_layer(x, *args, **kwargs)  # (rows, …, out)
        if len(x) != assignment.count:
            raise RuntimeError(
                f"a layer got {len(x)} rows for a batch of {assignment.count}: they cannot be assigned to adapters"
            )
        if (
            stack and stack.is_concatenated and x.shape[1:-1].numel() == 1
        ):  # one token per row: (rows, in), (rows, 1, in)
            others = assignment.mask_others(stack.a.shape[1], x.dim(), stack.a.device)
            return result + stack.compute_masked(x, others).to(result.dtype)
        if stack and len(assignment.adapters) > MAX_SLICES:
            return result + stack.compute_gathered(x, assignment.get_indices(stack.a.device)).to(result.dtype)
        for name in assignment.adapters:
            if name in layer.lora_A:
                rows = assignment.get_rows(name, x.device)
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight  # (r, in), (out, r)
                delta = linear(linear(x[rows].to(a.dtype), a), b).mul_(layer.scaling[name])
                result[rows] += delta.to(result.dtype)
        return result

    return forward
