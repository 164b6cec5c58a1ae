"""Works around PEFT 0.21: with several adapters it looks for trained tokens of each, also of those that have none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.utils.other import TrainableTokensWrapper


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
