"""N LoRA adapters of one base model in one pass: the rows of all cells share the base model's layers, and each cell's rows use only its own A and B.

PEFT owns the weights and what is saved. While cells are trained jointly, all parameters of a cell are one row of `ParameterRows`, and a
layer's matrices of all cells are a stack, a view of some columns. Every A and B of PEFT is a view of its stack, so nothing is copied, and
so is every `.grad`. Ranks are padded with zeros, which stay zero: the gradient of a padded row of A is a product with the padded row of B,
and vice versa.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper

from peftrun.adapters.attach import count_values
from peftrun.adapters.joint.batched_lora import BatchLayout, StackedWeights, apply_batched_lora
from peftrun.adapters.joint.parameter_rows import ParameterRows, bind_parameter, view_part
from peftrun.compat.torch import zero_all


@dataclass
class StackedLora:
    """The adapters `names` of a PEFT model, ready to be computed jointly.

    Attributes:
        own: per cell: name → each of its trainable parameters, named as for a single adapter called `default`.
        layout: the rows of the batch being computed; None: PEFT's own forward runs.
        stacks: one per LoRA layer.
        rows: the parameters and gradients of all cells, a row each.
        dirty: cells with gradients that are not zero.
    """

    net: Any
    names: list[str]
    own: list[dict[str, torch.nn.Parameter]] = field(default_factory=list)
    layout: BatchLayout | None = None
    stacks: list[StackedWeights] = field(default_factory=list)
    rows: ParameterRows = field(init=False)
    dirty: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.own = [_adapter_parameters(self.net, name) for name in self.names]
        self._unfreeze_adapters()
        layers = [module for module in self.net.modules() if isinstance(module, LoraLayer)]
        self._move_into_rows(layers)
        for layer, stack in zip(layers, self.stacks, strict=True):
            _patch_forward(layer, self, stack)
        for module in self.net.modules():
            if isinstance(module, ModulesToSaveWrapper):
                _patch_forward(module, self, None)
            elif isinstance(module, TrainableTokensWrapper):
                _patch_token_rows(module, self)

    def _move_into_rows(self, layers: list[Any]) -> None:
        """All trainable parameters of the dtype of the LoRA matrices: these first, in every row in the same columns."""
        weight = next(iter(layers[0].lora_A.values())).weight
        ranks = [_get_highest_rank(layer, self.names) for layer in layers]
        shared = [
            rank * width
            for rank, layer in zip(ranks, layers, strict=True)
            for width in (layer.in_features, layer.out_features)
        ]
        matrices = {
            id(module.weight)
            for layer in layers
            for modules in (layer.lora_A, layer.lora_B)
            for module in modules.values()
        }
        others = [
            [one for one in own.values() if id(one) not in matrices and one.dtype == weight.dtype] for own in self.own
        ]
        sizes = [[one.numel() for one in parameters] for parameters in others]
        self.rows = ParameterRows(len(self.names), shared, sizes, weight)
        self.stacks = [
            _stack_layer(layer, self.names, rank, self.rows) for layer, rank in zip(layers, ranks, strict=True)
        ]
        for cell, parameters in enumerate(others):
            for parameter in parameters:
                self.rows.move_in(cell, parameter)

    def has_dropout(self, cell: int) -> bool:
        """Whether the cell's adapter has dropout."""
        return any(stack.dropout[cell] for stack in self.stacks)

    def clear(self, *cells: int) -> None:
        """Sets the gradients of these cells to zero, in place: they are views, so None would detach them from the rows."""
        if self.dirty.intersection(cells):
            zero_all([self.rows.grads[cell] for cell in cells if cell in self.dirty])
            self.dirty.difference_update(cells)

    @contextmanager
    def bind_batch(self, layout: BatchLayout) -> Iterator[None]:
        """Within the block, batches passed to the model have the rows of `layout`; otherwise PEFT's own forward runs."""
        before, self.layout = self.layout, layout
        self.dirty.update(layout.cells)
        kind = self.rows.values.device.type
        if torch.is_autocast_enabled(kind):
            self._cast_stacks(torch.get_autocast_dtype(kind))
        try:
            yield
        finally:
            self.layout = before
            layout.casts.clear()

    @torch.no_grad()
    def _cast_stacks(self, dtype: torch.dtype) -> None:
        # all matrices of all cells at once, where each layer would cast its own, forth and back
        is_new, casts = self.rows.casts is None, self.rows.update_casts(dtype)
        for stack in self.stacks if is_new else ():
            stack.cast_a, stack.cast_b = (
                casts.as_strided(master.shape, master.stride(), master.storage_offset())
                for master in (stack.a, stack.b)
            )

    def apart(self, cell: int) -> None:
        """Copies the cell's parameters out of the stacks, so that saving writes the cell's values only."""
        for parameter in self.own[cell].values():
            parameter.data, parameter.grad = parameter.data.clone(memory_format=torch.contiguous_format), None

    def tensors(self, cell: int) -> dict[str, torch.Tensor]:
        """The cell's trained tensors on the CPU, by the names under which PEFT saves them."""
        return {_saved_name(name): value.detach().contiguous().cpu() for name, value in self.own[cell].items()}

    @torch.no_grad()
    def fill(self, cell: int, tensors: dict[str, torch.Tensor]) -> None:
        """Sets the cell's tensors to an earlier result of `tensors`."""
        for name, parameter in self.own[cell].items():
            parameter.copy_(tensors[_saved_name(name)])

    def counts(self, cell: int) -> tuple[int, int]:
        """The cell's trainable parameters, and all parameters of the model with this adapter alone."""
        adapters = {id(parameter) for parameters in self.own for parameter in parameters.values()}
        base = sum(count_values(parameter) for parameter in self.net.parameters() if id(parameter) not in adapters)
        trainable = sum(parameter.numel() for parameter in self.own[cell].values())
        return trainable, base + trainable

    @contextmanager
    def alone(self, cell: int) -> Iterator[str]:
        """Within the block the model runs with this cell's adapter, whose name is yielded. Training can continue afterwards."""
        self.net.set_adapter(self.names[cell])
        try:
            yield self.names[cell]
        finally:
            self._unfreeze_adapters()

    def _unfreeze_adapters(self) -> None:
        # PEFT's set_adapter freezes all adapters but the active one
        for parameters in self.own:
            for parameter in parameters.values():
                parameter.requires_grad_(True)

    def close(self) -> None:
        """Restores PEFT's own forward in every layer."""
        for module in self.net.modules():
            if isinstance(module, LoraLayer | ModulesToSaveWrapper | TrainableTokensWrapper):
                module.__dict__.pop("forward", None)


def _saved_name(name: str) -> str:
    return name.replace(".modules_to_save.default", "").replace(".default", "")


def _adapter_parameters(net: Any, name: str) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters of one adapter, named as for a single adapter called `default`."""
    part = f".{name}"
    return {
        f"{key.removesuffix(part)}.default" if key.endswith(part) else key.replace(f"{part}.", ".default."): parameter
        for key, parameter in net.named_parameters()
        if f"{part}." in key or key.endswith(part)
    }


def _get_highest_rank(layer: Any, names: Sequence[str]) -> int:
    return max((layer.lora_A[name].weight.shape[0] for name in names if name in layer.lora_A), default=0)


def _stack_layer(layer: Any, names: Sequence[str], rank: int, rows: ParameterRows) -> StackedWeights:
    """A layer's matrices, moved into stacks of the highest rank r. A cell that does not adapt the layer has zeros."""
    # (cells, r, in) and (cells, r, out): B is stored transposed, so that both are padded along the same dimension
    shapes = [(rank, width) for width in (layer.in_features, layer.out_features)]
    parts = [(rows.take_shared(*shape), *shape) for shape in shapes]
    a, b, grad_a, grad_b = (view_part(source, *part) for source in (rows.values, rows.grads) for part in parts)
    stack = StackedWeights(a, b, grad_a, grad_b, a.new_zeros(len(names), 1, 1), [0.0] * len(names))
    for cell, name in enumerate(names):
        if name in layer.lora_A:
            first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
            own = len(first)  # its rank
            bind_parameter(first, a[cell, :own], grad_a[cell, :own])
            bind_parameter(second, b[cell, :own].T, grad_b[cell, :own].T)
            stack.scale[cell] = layer.scaling[name]
            stack.dropout[cell] = getattr(layer.lora_dropout[name], "p", 0.0)
    return stack


def _patch_forward(module: Any, joint: StackedLora, stack: StackedWeights | None) -> None:
    """Replaces the forward of a LoRA layer with this stack, or (None) of a module that each cell trains in full, within `bind_batch`."""
    peft_forward = module.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if joint.layout is None:
            return peft_forward(x, *args, **kwargs)
        if stack is not None:  # each cell's rows get its own delta
            return apply_batched_lora(module.base_layer(x, *args, **kwargs), x, stack, joint.layout)
        # each cell's rows (rows, …) go through its own copy
        pairs = zip(joint.layout.cells, joint.layout.split(x), strict=True)
        return torch.cat([module.modules_to_save[joint.names[cell]](rows, *args, **kwargs) for cell, rows in pairs])

    module.forward = forward


def _patch_token_rows(wrapper: Any, joint: StackedLora) -> None:
    """Replaces the forward of an embedding, or of the output layer, of which each cell trains the rows of some tokens, within `bind_batch`."""
    peft_forward, layer = wrapper.forward, wrapper.token_adapter.get_base_layer()

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if joint.layout is None:
            return peft_forward(x, *args, **kwargs)
        result, is_embedding = layer(x, *args, **kwargs), isinstance(layer, torch.nn.Embedding)
        split = joint.layout.split if is_embedding else joint.layout.split_outputs
        chunks = zip(joint.layout.cells, split(x), split(result), strict=True)
        replace_rows = _replace_embeddings if is_embedding else _replace_logits
        return torch.cat(
            [replace_rows(wrapper.token_adapter, joint.names[cell], part, out) for cell, part, out in chunks],
            dim=0 if is_embedding or not joint.layout.labels else 1,
        )

    wrapper.forward = forward


def _replace_embeddings(token_adapter: Any, name: str, ids: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """The embeddings (rows, tokens, width) of `ids` (rows, tokens), those of the adapter's own tokens from its trained rows."""
    own = torch.tensor(token_adapter.token_indices[name], device=ids.device)
    matches = ids[..., None] == own  # (rows, tokens, own tokens)
    trained = token_adapter.trainable_tokens_delta[name].to(embeddings.dtype)  # (own tokens, width)
    layer = token_adapter.get_base_layer()
    if layer.padding_idx is not None:  # torch computes no gradient for this row
        trained = torch.where((own == layer.padding_idx)[:, None], trained.detach(), trained)
    trained = trained * getattr(layer, "embed_scale", 1)
    return torch.where(matches.any(-1, keepdim=True), trained[matches.int().argmax(-1)], embeddings)


def _replace_logits(token_adapter: Any, name: str, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The logits (…, V) of `hidden` (…, H), those of the adapter's own tokens by its trained rows."""
    own = torch.tensor(token_adapter.token_indices[name], device=hidden.device)
    trained = token_adapter.trainable_tokens_delta[name].to(hidden.dtype)  # (own tokens, H)
    return logits.index_copy(-1, own, torch.nn.functional.linear(hidden, trained).to(logits.dtype))
