"""Rows of one batch, each through its own plain LoRA adapter: what PEFT's routing computes, with fewer and larger products.

PEFT gathers the rows of each adapter in every layer, multiplies them by A and B and scatters them back. Where each row is one token,
as in all steps of an answer but its first, the A of all adapters are here one matrix and their B another: two products, and between them
nothing of an adapter is left in the rows of others. Longer rows lie adapter by adapter in slices, which copy nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.nn.functional import linear

QUANTIZED_LINEARS = {"Linear4bit", "Linear8bitLt"}  # bitsandbytes: classes that are there only where it is installed
# Most products of matrices of adapters side by side, against those of the base: where they hold every adapter of the model, some that are
# not asked for now, and none but those that are. Beyond, adapter by adapter is faster.
ALL_ADAPTERS_LIMIT, SPARE_ADAPTERS_LIMIT, REQUESTED_ADAPTERS_LIMIT = 0.25, 0.5, 1.0


@dataclass(frozen=True)
class _StackedAdapters:
    """One layer's adapters side by side: a (width, in), b (out, width), the scale and the adapter's number of each of the `width` places."""

    a: torch.Tensor
    b: torch.Tensor
    scale: torch.Tensor
    owner: torch.Tensor

    def added(self, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """What the adapters add to the base layer's result; `others` are places of adapters that do not answer a row."""
        inner = linear(x.to(self.a.dtype), self.a)
        return linear(inner.masked_fill_(others, 0).mul_(self.scale), self.b)


class AdapterRouter:
    """The LoRA layers that a PEFT model has now. It keeps copies of adapters' matrices, so where adapters come and go, another one is made."""

    def __init__(self, net: Any) -> None:
        self._layers = [layer for layer in net.modules() if isinstance(layer, LoraLayer)]
        self._wrappers = [one for one in net.modules() if isinstance(one, AuxiliaryTrainingWrapper)]
        self._known: dict[str, bool] = {}
        self._all = [
            name for name in dict.fromkeys(n for layer in self._layers for n in layer.lora_A) if self.can_route([name])
        ]
        self._stacked: list[str] = []
        self._stacks: list[_StackedAdapters | None] = []

    def can_route(self, adapters: Iterable[str]) -> bool:
        """Whether all layers of these LoRA adapters are plain: no embedding, no convolution, no bias, no variant."""
        for name in adapters:
            if name not in self._known:
                self._known[name] = all(_is_plain_lora(layer, name) for layer in self._layers)
        return all(self._known[name] for name in adapters)

    @contextmanager
    def route_rows(self, names: Sequence[str]) -> Iterator[None]:
        """For as long as the block runs, row number i of every batch is answered by adapter `names[i]`; by the base if there is none."""
        held = [name for name in dict.fromkeys(names) if name in self._all]
        stacks = self._get_stacks(held) if len(held) > 1 else [None] * len(self._layers)
        seats = _RowAssignment(names, self._stacked)
        for layer, stack in zip(self._layers, stacks, strict=True):
            layer.__dict__["forward"] = _make_forward(layer, stack, seats)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.__dict__["forward"]

    @contextmanager
    def disable_saved_modules(self) -> Iterator[None]:
        """For as long as the block runs, modules and tokens that an adapter holds in full are passed over: nobody who shares a batch has any."""
        switched = [one for one in self._wrappers if not one.disable_adapters]
        for one in switched:
            one.enable_adapters(False)
        try:
            yield
        finally:
            for one in switched:
                one.enable_adapters(True)

    def _get_stacks(self, names: list[str]) -> list[_StackedAdapters | None]:
        """Stacks of all layers with these adapters, and with others that are likely to be asked for next as long as these cost little."""
        missing, spare = set(names) - set(self._stacked), set(self._stacked) - set(names)
        if missing or (spare and self._relative_cost(self._stacked) > SPARE_ADAPTERS_LIMIT):
            tried = (
                (self._all, ALL_ADAPTERS_LIMIT),
                (list(dict.fromkeys([*self._stacked, *names])), SPARE_ADAPTERS_LIMIT),
                (names, REQUESTED_ADAPTERS_LIMIT),
            )
            self._stacked = next((some for some, limit in tried if self._relative_cost(some) <= limit), [])
            shared: dict[Any, Any] = {}
            self._stacks = [_stack_adapters(layer, self._stacked, shared) for layer in self._layers]
        return self._stacks

    def _relative_cost(self, names: list[str]) -> float:
        """Products of matrices of these adapters against those of the layers that they change."""
        ranks = [sum(layer.r[name] for name in names if name in layer.lora_A) for layer in self._layers]
        sizes = [
            (one.in_features, one.out_features, rank) for one, rank in zip(self._layers, ranks, strict=True) if rank
        ]
        return sum(rank * (i + o) for i, o, rank in sizes) / sum(i * o for i, o, _ in sizes)


class _RowAssignment:
    """Which rows each adapter answers, in the forms that layers ask for."""

    def __init__(self, names: Sequence[str], stacked: list[str]) -> None:
        self.count = len(names)
        self.places = {name: _row_index([row for row, one in enumerate(names) if one == name]) for name in set(names)}
        self._numbers = torch.tensor([stacked.index(name) if name in stacked else -1 for name in names])
        self._others: dict[tuple[Any, ...], torch.Tensor] = {}

    def others(self, stack: _StackedAdapters, dims: int) -> torch.Tensor:
        """(rows, 1…, width) of `dims` dimensions: places of adapters that do not answer the row."""
        key = (id(stack.owner), dims)
        if key not in self._others:
            numbers = self._numbers.to(stack.owner.device)
            found = stack.owner[None, :] != numbers[:, None]
            self._others[key] = found.view(self.count, *[1] * (dims - 2), -1)
        return self._others[key]


def _is_plain_lora(layer: Any, name: str) -> bool:
    if name in layer.lora_embedding_A:
        return False
    if name not in layer.lora_A:
        return True
    known = (isinstance(layer, Linear) or type(layer).__name__ in QUANTIZED_LINEARS) and "forward" not in layer.__dict__
    a, b = layer.lora_A[name], layer.lora_B[name]
    here = not (
        a.weight.is_meta or b.weight.is_meta
    )  # accelerate brings what it has put elsewhere for PEFT's own forward alone
    return known and here and not layer.merged and name not in layer.lora_variant and b.bias is None


def _row_index(rows: list[int]) -> Any:
    """What picks the rows: a slice where they follow one another, for it copies nothing."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows


def _stack_adapters(layer: Any, names: list[str], shared: dict[Any, Any]) -> _StackedAdapters | None:
    """None where the layer has none of the adapters, or one whose numbers are not finite: zeros times it would be no zeros."""
    own = [(number, name) for number, name in enumerate(names) if name in layer.lora_A]
    if not own:
        return None
    a = torch.cat([layer.lora_A[name].weight for _, name in own])
    b = torch.cat([layer.lora_B[name].weight for _, name in own], dim=1)
    if not b.isfinite().all():
        return None
    columns = [(number, layer.scaling[name]) for number, name in own for _ in layer.lora_A[name].weight]
    key = (tuple(columns), a.dtype, a.device)
    if key not in shared:  # most layers are alike, and so are their masks
        owner, scale = zip(*columns, strict=True)
        shared[key] = a.new_tensor(scale), torch.tensor(owner, device=a.device)
    return _StackedAdapters(a, b, *shared[key])


def _make_forward(layer: Any, stack: _StackedAdapters | None, seats: _RowAssignment) -> Any:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = layer.base_layer(x, *args, **kwargs)
        if len(x) != seats.count:
            raise RuntimeError(
                f"a layer takes {len(x)} rows where the batch has {seats.count}, so whose they are is not known"
            )
        if stack is not None and x.shape[1:-1].numel() == 1:
            return result + stack.added(x, seats.others(stack, x.dim())).to(result.dtype)
        for name, rows in seats.places.items():
            if name in layer.lora_A:
                result[rows] += _apply_adapter(layer, name, x[rows]).to(result.dtype)
        return result

    return forward


def _apply_adapter(layer: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return linear(linear(x.to(a.dtype), a), b).mul_(layer.scaling[name])
