"""Works around PEFT 0.21: with several adapters it looks for trained tokens of each, also of those that have none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper

from peftrun.io.safetensors_stream import RowBlock


@contextmanager
def skip_adapters_without_tokens(net: Any, name: str) -> Iterator[None]:
    """Within the block, PEFT saves and loads no trained tokens of adapter `name` in modules where it has none."""
    wrappers = [module for module in net.modules() if isinstance(module, TrainableTokensWrapper)]
    others = [wrapper for wrapper in wrappers if name not in wrapper.token_adapter.trainable_tokens_delta]
    for wrapper in others:
        wrapper.adapter_state_dict = _skip_adapter(name, wrapper.adapter_state_dict)
        wrapper.adapter_state_dict_load_map = _skip_adapter(name, wrapper.adapter_state_dict_load_map)
    try:
        yield
    finally:
        for wrapper in others:  # deletes the instance attributes; the class's methods remain
            del wrapper.adapter_state_dict, wrapper.adapter_state_dict_load_map


def _skip_adapter(name: str, method: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    return lambda adapter, *args: {} if adapter == name else method(adapter, *args)


def replace_rows(token_adapter: Any, name: str, values: torch.Tensor, block: RowBlock) -> torch.Tensor:
    """`values`, the rows of a `block` of the base layer's weight (rows, in), with those that adapter `name` trains in place of the base's."""
    trained = token_adapter.trainable_tokens_delta[name].detach()
    for row, token in enumerate(token_adapter.token_indices[name]):
        if block[0] <= token < block[1]:
            values[token - block[0]] = trained[row]
    return values
