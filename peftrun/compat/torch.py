"""torch 2.13: what modules and tensors hold behind their public names."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch


def copy_module(
    module: Any, parameters: Mapping[str, Any] | None = None, modules: Mapping[str, torch.nn.Module] | None = None
) -> Any:
    """A shallow copy with some parameters and children replaced; torch would replace them in the original as well."""
    view = copy(module)
    view._parameters = module._parameters | (parameters or {})
    view._modules = module._modules | (modules or {})
    return view


def hold_parameters(module: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Makes parameters those of the module. torch refuses names with dots."""
    module._parameters.update(parameters)


def count_writes(tensor: torch.Tensor) -> int:
    """How often the tensor was written into: equal at two times, its values are the same. Autograd's own counter."""
    return tensor._version


def is_view(tensor: torch.Tensor) -> bool:
    """Whether autograd takes the tensor for a view, into which a custom function must not write."""
    return tensor._is_view()


def zero_all(tensors: Sequence[torch.Tensor]) -> None:
    """Sets all to zero in one call, as torch's optimizers do: one kernel, not one for each tensor."""
    torch._foreach_zero_(list(tensors))


def remove_compiled(module: torch.nn.Module) -> None:
    """Undoes `module.compile()`, which torch cannot."""
    module._compiled_call_impl = None
