"""N LoRA adapters of one base model in one pass: the rows of all cells share the base model's layers, and each cell's rows use only its own A and B.

PEFT owns the weights and what is saved. While cells are trained jointly, a layer's matrices are stored in one stack, and every A and B of
PEFT is a view of it, so nothing is copied. Gradients are stored in a second stack of the same shape, of which every `.grad` is a view.
Ranks are padded with zeros, which stay zero: the gradient of a padded row of A is a product with the padded row of B, and vice versa.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper

from peftrun.adapters.joint.batched_lora import BatchLayout, StackedWeights, apply_batched_lora
from peftrun.compat.torch import zero_all


@dataclass
class StackedLora:
    """The adapters `names` of a PEFT model, ready to be computed jointly.

    Attributes:
        own: per cell: name → each of its trainable parameters, named as for a single adapter called `default`.
        layout: the rows of the batch being computed; None: PEFT's own forward runs.
        stacks: one per LoRA layer.
    """

    net: Any
    names: list[str]
    own: list[dict[str, torch.nn.Parameter]] = field(default_factory=list)
    layout: BatchLayout | None = None
    stacks: list[StackedWeights] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = [_adapter_parameters(self.net, name) for name in self.names]
        self._unfreeze_adapters()
        for layer in [module for module in self.net.modules() if isinstance(module, LoraLayer)]:
            self.stacks.append(_stack_layer(layer, self.names))
            _patch_forward(layer, self, self.stacks[-1])
        for module in self.net.modules():
            if isinstance(module, ModulesToSaveWrapper):
                _patch_forward(module, self, None)
            elif isinstance(module, TrainableTokensWrapper):
                _patch_token_rows(module, self)

    def has_dropout(self, cell: int) -> bool:
        """Whether the cell's adapter has dropout."""
        return any(stack.dropout[cell] for stack in self.stacks)

    def clear(self, cell: int) -> None:
        """Sets the cell's gradients to zero, in place: they are views, so None would detach them from the stack."""
        zero_all([grad[cell] for stack in self.stacks for grad in (stack.grad_a, stack.grad_b)])

    @contextmanager
    def bind_batch(self, layout: BatchLayout) -> Iterator[None]:
        """Within the block, batches passed to the model have the rows of `layout`; otherwise PEFT's own forward runs."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before
            layout.casts.clear()

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
        base = sum(parameter.numel() for parameter in self.net.parameters() if id(parameter) not in adapters)
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


def _stack_layer(layer: Any, names: Sequence[str]) -> StackedWeights:
    """A layer's matrices, moved into stacks of the highest rank r. A cell that does not adapt the layer has zeros."""
    count, weight = len(names), next(iter(layer.lora_A.values())).weight
    rank = max((layer.lora_A[name].weight.shape[0] for name in names if name in layer.lora_A), default=0)
    # (cells, r, in) and (cells, r, out): B is stored transposed, so that both are padded along the same dimension
    a, b = (weight.new_zeros(count, rank, width) for width in (layer.in_features, layer.out_features))
    scale = weight.new_zeros(count, 1, 1)
    stack = StackedWeights(a, b, torch.zeros_like(a), torch.zeros_like(b), scale, [0.0] * count)
    for cell, name in enumerate(names):
        if name in layer.lora_A:
            _move_into_stack(layer.lora_A[name].weight, stack.a[cell], stack.grad_a[cell], transposed=False)
            _move_into_stack(layer.lora_B[name].weight, stack.b[cell], stack.grad_b[cell], transposed=True)
            stack.scale[cell] = layer.scaling[name]
            stack.dropout[cell] = getattr(layer.lora_dropout[name], "p", 0.0)
    return stack


def _move_into_stack(
    parameter: torch.nn.Parameter, values: torch.Tensor, grads: torch.Tensor, *, transposed: bool
) -> None:
    """Makes `parameter` and its gradient views of one cell's `values` and `grads`: (r, width)."""
    rank = parameter.shape[1] if transposed else parameter.shape[0]
    data, grad = (stacked[:rank].T if transposed else stacked[:rank] for stacked in (values, grads))
    data.copy_(parameter.data)
    parameter.data, parameter.grad = data, grad


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
