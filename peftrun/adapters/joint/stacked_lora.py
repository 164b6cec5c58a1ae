"""N LoRA adapters of one base computed in one pass: the rows of all cells go through the base together, each cell's rows meet only its own A and B.

PEFT owns the weights and what is saved. While cells are trained together, the values of a layer's matrices lie in one stack, in which every
A and B that PEFT holds is a view, so that nothing is copied. Gradients lie in a second stack of the same shape, in which every `.grad` is a view. Ranks are padded with zeros, which stay zeros: a padded row of A
meets a padded row of B, so neither is ever moved.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper

from peftrun.adapters.joint.batched_lora import BatchLayout, StackedWeights, apply_batched_lora, clear_dtype_cache


@dataclass
class StackedLora:
    """The adapters `names` of a PEFT model, ready to be computed together.

    Attributes:
        own: name of each cell's every trainable parameter, as it is called where the adapter is alone → the parameter.
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
            _patch_lora_layer(layer, self.stacks[-1], self)
        for module in self.net.modules():
            if isinstance(module, ModulesToSaveWrapper):
                _patch_saved_module(module, self)

    def has_dropout(self, cell: int) -> bool:
        """Whether the cell's adapter has dropout."""
        return any(stack.dropout[cell] for stack in self.stacks)

    def clear(self, cell: int) -> None:
        """The cell's gradients are zero again."""
        torch._foreach_zero_([one[cell] for stack in self.stacks for one in (stack.grad_a, stack.grad_b)])

    @contextmanager
    def bind_batch(self, seating: BatchLayout) -> Iterator[None]:
        """For as long as the block runs, batches that pass the model hold the rows of `seating`; else PEFT's own forward runs."""
        before, self.layout = self.layout, seating
        try:
            yield
        finally:
            self.layout = before
            clear_dtype_cache()

    def apart(self, cell: int) -> None:
        """The cell's parameters in memory of their own again, so that what is saved holds the cell's values alone."""
        for one in self.own[cell].values():
            one.data, one.grad = one.data.clone(memory_format=torch.contiguous_format), None

    def tensors(self, cell: int) -> dict[str, torch.Tensor]:
        """The cell's trained tensors by the names that PEFT saves them under."""
        return {_saved_name(name): one.detach().contiguous().cpu() for name, one in self.own[cell].items()}

    @torch.no_grad()
    def fill(self, cell: int, tensors: dict[str, torch.Tensor]) -> None:
        """Sets the cell's tensors to those that `tensors` once gave."""
        for name, one in self.own[cell].items():
            one.copy_(tensors[_saved_name(name)])

    def counts(self, cell: int) -> tuple[int, int]:
        """Trainable parameters of the cell, and all parameters that there are where it is alone."""
        adapters = {id(one) for own in self.own for one in own.values()}
        base = sum(one.numel() for one in self.net.parameters() if id(one) not in adapters)
        own = sum(one.numel() for one in self.own[cell].values())
        return own, base + own

    @contextmanager
    def alone(self, cell: int) -> Iterator[str]:
        """Inside, the model answers with this cell's adapter, whose name is given; training can go on afterwards."""
        self.net.set_adapter(self.names[cell])
        try:
            yield self.names[cell]
        finally:
            self._unfreeze_adapters()

    def _unfreeze_adapters(self) -> None:
        """PEFT freezes all adapters but the one that answers."""
        for own in self.own:
            for one in own.values():
                one.requires_grad_(True)

    def close(self) -> None:
        """Every layer has PEFT's own forward again."""
        for module in self.net.modules():
            module.__dict__.pop("forward", None) if isinstance(module, LoraLayer | ModulesToSaveWrapper) else None


def _saved_name(name: str) -> str:
    return name.replace(".modules_to_save.default", "").replace(".default", "")


def _adapter_parameters(net: Any, name: str) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters of one adapter, by the names that they have where it is alone and called `default`."""
    mark = f".{name}"
    return {
        f"{key.removesuffix(mark)}.default" if key.endswith(mark) else key.replace(f"{mark}.", ".default."): one
        for key, one in net.named_parameters()
        if f"{mark}." in key or key.endswith(mark)
    }


def _stack_layer(layer: Any, names: Sequence[str]) -> StackedWeights:
    """A layer's matrices, moved into stacks of the highest rank."""
    count, like = len(names), next(iter(layer.lora_A.values())).weight
    rank = max((layer.lora_A[name].weight.shape[0] for name in names if name in layer.lora_A), default=0)
    a, b = (like.new_zeros(count, rank, width) for width in (layer.in_features, layer.out_features))
    stack = StackedWeights(a, b, torch.zeros_like(a), torch.zeros_like(b), like.new_zeros(count, 1, 1), [0.0] * count)
    for cell, name in enumerate(names):
        if name in layer.lora_A:
            _move_into_stack(layer.lora_A[name].weight, stack.a[cell], stack.grad_a[cell], turned=False)
            _move_into_stack(layer.lora_B[name].weight, stack.b[cell], stack.grad_b[cell], turned=True)
            stack.scale[cell] = layer.scaling[name]
            stack.dropout[cell] = getattr(layer.lora_dropout[name], "p", 0.0)
    return stack


def _move_into_stack(one: torch.nn.Parameter, values: torch.Tensor, grads: torch.Tensor, *, turned: bool) -> None:
    rank = one.shape[1] if turned else one.shape[0]
    place, grad = (part[:rank].T if turned else part[:rank] for part in (values, grads))
    place.copy_(one.data)
    one.data, one.grad = place, grad


def _patch_lora_layer(layer: Any, stack: StackedWeights, joint: StackedLora) -> None:
    """From now on the layer asks who is seated."""
    plain = layer.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if joint.layout is None:
            return plain(x, *args, **kwargs)
        return apply_batched_lora(layer.base_layer(x, *args, **kwargs), x, stack, joint.layout)

    layer.forward = forward


def _patch_saved_module(wrapper: Any, joint: StackedLora) -> None:
    """A module that each cell trains in full: each cell's rows pass through its own."""
    plain = wrapper.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if joint.layout is None:
            return plain(x, *args, **kwargs)
        pairs = zip(joint.layout.cells, joint.layout.split(x), strict=True)
        return torch.cat([wrapper.modules_to_save[joint.names[cell]](rows, *args, **kwargs) for cell, rows in pairs])

    wrapper.forward = forward
