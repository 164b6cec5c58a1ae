"""torch.compile of the repeated layers of a model, one by one, while it is trained.

A whole model is compiled once for every length of a batch, and takes minutes. Its layers are alike: one of them is compiled, for
batches of any length, and all others use the same code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.other import is_repeated_blocks

from peftrun.compat.torch import remove_compiled
from peftrun.errors import ConfigError

ARGUMENTS = {"torch_compile_backend": "backend", "torch_compile_mode": "mode"}  # transformers' fields → torch.compile's


@contextmanager
def compile_blocks(model: torch.nn.Module, enabled: bool, options: dict[str, Any]) -> Iterator[None]:
    """Inside, each repeated layer of `model` is compiled, for any length of its input. Names of its tensors stay as they are.

    Args: options: of torch.compile, as transformers names them: torch_compile_backend, torch_compile_mode.

    Raises: ConfigError: the model has no repeated layers.
    """
    blocks = list(_list_blocks(model)) if enabled else []
    if enabled and not blocks:
        raise ConfigError(
            "trainer.torch_compile=true: compiles the repeated layers of a model, and this one has none; "
            "type trainer.torch_compile=false"
        )
    for block in blocks:
        block.compile(dynamic=True, **{ARGUMENTS[name]: value for name, value in options.items()})
    try:
        yield
    finally:
        for block in blocks:
            remove_compiled(block)


def _list_blocks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The layers of the outermost lists of modules of one class; lists inside of them, such as experts, belong to a layer."""
    if is_repeated_blocks(module):
        yield from module.children()
        return
    for child in module.children():
        yield from _list_blocks(child)
