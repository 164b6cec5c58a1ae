"""PEFT 0.21 looks for trained tokens under the name of every adapter, also of one that has none beside one that has some."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.utils.other import TrainableTokensWrapper


@contextmanager
def skip_adapters_without_tokens(net: Any, name: str) -> Iterator[None]:
    """For as long as the block runs, PEFT saves and loads no trained tokens of adapter `name` where it has none."""
    wrappers = [one for one in net.modules() if isinstance(one, TrainableTokensWrapper)]
    others = [one for one in wrappers if name not in one.token_adapter.trainable_tokens_delta]
    for one in others:
        one.adapter_state_dict = _skip_adapter(name, one.adapter_state_dict)
        one.adapter_state_dict_load_map = _skip_adapter(name, one.adapter_state_dict_load_map)
    try:
        yield
    finally:
        for one in others:
            del one.adapter_state_dict, one.adapter_state_dict_load_map


def _skip_adapter(name: str, usual: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    return lambda adapter, *more: {} if adapter == name else usual(adapter, *more)
