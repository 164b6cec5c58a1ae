"""Forward passes of models whose weights lie in files: each layer is read when it is reached and let go when it has answered.

Memory holds the layer that computes, whatever the size of the model. Passes run side by side: each waits at every layer until
the others have come to one too, so that a weight that several of them need is read once, and the products with it are taken at once.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

from peftrun.io import blocks
from peftrun.io.safetensors_stream import RowBlock, split_rows

WRAPPED = re.compile(r"\.(base_layer|original_module)(?=\.)")


@dataclass(frozen=True)
class LayerAnswer:
    """What a module that an adapter has changed answers; its weights are still there.

    Attributes:
        plain: what its base layer answered to the same, where that layer is read some rows at a time; None where it is whole in memory.
    """

    path: str
    module: Any
    args: tuple[Any, ...]
    output: Any
    plain: torch.Tensor | None


LayerCheck = Callable[[LayerAnswer], None]


class NotWalkableError(Exception):
    """Why this model cannot compute with its weights in files."""


@dataclass
class ForwardPass:
    """One forward pass.

    Attributes:
        model: transformers' model; its parameters on the meta device are read when they are needed.
        read: (name of a parameter, first row, last row + 1; None: all rows) → what identifies it, and a function that gives its values.
        call: runs the model; what it returns is what the pass gives.
        check: called after each module that an adapter has changed.
    """

    model: Any
    read: Callable[[str, int | None, int | None], tuple[Any, Callable[[], torch.Tensor]]]
    call: Callable[[], torch.Tensor]
    check: LayerCheck | None = None


@dataclass
class _ParameterRequest:
    """What a pass waits for: names and rows of parameters, and then their values."""

    keys: list[tuple[str, int | None, int | None]]
    values: list[torch.Tensor] = field(default_factory=list)


def run_passes(passes: list[ForwardPass]) -> list[torch.Tensor]:
    """What each pass gives. All of them advance together, a layer at a time.

    Raises: NotWalkableError: a model uses a weight outside of the layer that has it.
    """
    with ExitStack() as stack, torch.inference_mode():
        for model, check in {id(one.model): (one.model, one.check) for one in passes}.values():
            stack.enter_context(_read_when_reached(model, check))
        try:
            return _advance_passes(passes)
        except (NotImplementedError, RuntimeError, AttributeError) as error:
            if "meta" not in str(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise NotWalkableError(f"it uses weights outside of the layer that holds them ({reason})") from error


@dataclass
class _MatmulRequest:
    """What a linear layer waits for: its inputs times a weight, which is read so many rows at a time."""

    key: str
    rows: int
    inputs: torch.Tensor
    values: torch.Tensor | None = None


def _advance_passes(passes: list[ForwardPass]) -> list[torch.Tensor]:
    results: dict[int, torch.Tensor] = {}  # index of a pass → its logits
    running = {index: greenlet(forward_pass.call) for index, forward_pass in enumerate(passes)}
    waiting: dict[int, _ParameterRequest | _MatmulRequest] = {}
    cache: dict[Any, torch.Tensor] = {}
    try:
        while running:
            _compute_matmuls(passes, {i: one for i, one in waiting.items() if isinstance(one, _MatmulRequest)})
            for index, routine in list(running.items()):
                if index in waiting:
                    request = waiting.pop(index)
                    if isinstance(request, _ParameterRequest):
                        _read_parameters(passes[index], request, cache)
                    answer = routine.switch(request.values)
                else:
                    answer = routine.switch()
                if routine.dead:
                    results[index] = answer
                    del running[index]
                else:
                    waiting[index] = answer
            cache = _keep_requested(passes, waiting, cache)
    finally:
        # After an error: the grad mode is the thread's, and the passes that still run would reset it whenever they are collected.
        for routine in running.values():
            if not routine.dead:
                routine.throw()
    return [results[index] for index in range(len(passes))]


def _read_parameters(one: ForwardPass, wanted: _ParameterRequest, cache: dict[Any, torch.Tensor]) -> None:
    for key in wanted.keys:
        identity, values = one.read(*key)
        if identity not in cache:
            cache[identity] = values()
        wanted.values.append(cache[identity])


def _compute_matmuls(passes: list[ForwardPass], products: dict[int, _MatmulRequest]) -> None:
    """Takes the products with the same weight together, piece by piece of it."""
    groups: dict[Any, list[int]] = {}
    for place, one in products.items():
        groups.setdefault(passes[place].read(one.key, None, None)[0], []).append(place)
    for places in groups.values():
        first = products[places[0]]
        flat = [products[place].inputs.flatten(end_dim=-2) for place in places]  # (tokens, inputs)
        together, width = torch.cat(flat), first.inputs.shape[-1]
        read, out = passes[places[0]].read, together.new_empty(len(together), first.rows)
        blocks.map_blocks(
            partial(_multiply_rows, together, out),
            [(block, read(first.key, *block)[1]) for block in split_rows(first.rows, width)],
        )
        for place, own in zip(places, out.split([len(one) for one in flat]), strict=True):
            products[place].values = own.reshape(*products[place].inputs.shape[:-1], first.rows)


def _multiply_rows(inputs: torch.Tensor, out: torch.Tensor, part: tuple[RowBlock, Callable[[], torch.Tensor]]) -> None:
    block, values = part
    out[:, slice(*block)] = torch.nn.functional.linear(inputs, values())


def _keep_requested(
    passes: list[ForwardPass], waiting: dict[int, _ParameterRequest | _MatmulRequest], cache: dict[Any, torch.Tensor]
) -> dict[Any, torch.Tensor]:
    """What has been read and is asked for again; the rest is let go."""
    asked = {
        passes[place].read(*key)[0]
        for place, wanted in waiting.items()
        if isinstance(wanted, _ParameterRequest)
        for key in wanted.keys
    }
    return {identity: values for identity, values in cache.items() if identity in asked}


def plain_name(name: str) -> str:
    """The name that a parameter has without the adapter's wrappers around its module."""
    return WRAPPED.sub("", f".{name}").removeprefix(".")


@contextmanager
def _read_when_reached(model: Any, check: LayerCheck | None) -> Iterator[None]:
    handles, replaced = [], []
    users: Counter[int] = Counter()  # of a module that holds others, passes that are inside of it
    for path, module, absent in _iter_load_units(model):
        if type(module) in (torch.nn.Linear, torch.nn.Embedding) and "weight" in absent:
            module.forward = _make_rowwise_forward(module, absent)
            replaced.append(module)
        elif absent or check:
            handles += _register_hooks(path, module, absent, check, users)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in replaced:
            del module.forward


def _iter_load_units(model: Any) -> Iterator[tuple[str, Any, dict[str, str]]]:
    """Modules that are loaded as one, with the names of their parameters that are nowhere and those in the files."""
    handled: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{outer}.") for outer in handled):
            continue
        adapted = isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        whole = adapted and not is_row_wise(module)
        if whole:
            handled.append(path)
        skipped = "original_module." if isinstance(module, ModulesToSaveWrapper) else "-"
        own = [(name, one) for name, one in module.named_parameters(recurse=whole) if not name.startswith(skipped)]
        absent = {name: plain_name(f"{path}.{name}" if path else name) for name, one in own if one.is_meta}
        if absent or adapted:
            yield path, module, absent


def is_row_wise(module: Any) -> bool:
    """Whether PEFT's layer has each row of its base layer's weight for itself, in its forward pass as in its merge."""
    return (
        type(module) is lora.Linear
        and type(module.get_base_layer()) is torch.nn.Linear
        and not module.fan_in_fan_out
        and not module.lora_variant
        and not any(module.lora_bias.values())
    )


def _request_parameters(keys: list[tuple[str, int | None, int | None]]) -> list[torch.Tensor]:
    values: list[torch.Tensor] = _yield_request(_ParameterRequest(keys))
    return values


def _yield_request(wanted: _ParameterRequest | _MatmulRequest) -> Any:
    parent = getcurrent().parent
    assert parent is not None, "a layer without weights answers inside of `run` alone"
    return parent.switch(wanted)


def _register_hooks(
    path: str, module: Any, absent: dict[str, str], check: LayerCheck | None, users: Counter[int]
) -> list[Any]:
    places = {name: (module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in absent}
    nowhere = {name: getattr(owner, own) for name, (owner, own) in places.items()}
    plain: list[torch.Tensor] = []

    def load(*_: Any) -> None:
        values = _request_parameters([(key, None, None) for key in absent.values()]) if absent else []
        users[id(module)] += 1
        for (owner, own), value in zip(places.values(), values, strict=True):
            setattr(owner, own, torch.nn.Parameter(value, requires_grad=False))

    def release(_: Any, args: tuple[Any, ...], output: Any) -> None:
        if check and isinstance(module, BaseTunerLayer):
            check(LayerAnswer(path, module, args, output, plain.pop() if plain else None))
        users[id(module)] -= 1
        if not users[id(module)]:
            for name, (owner, own) in places.items():
                setattr(owner, own, nowhere[name])

    hooks = [module.register_forward_pre_hook(load), module.register_forward_hook(release)]
    if check and is_row_wise(module) and module.get_base_layer().weight.is_meta:
        hooks.append(module.get_base_layer().register_forward_hook(lambda *seen: plain.append(seen[-1])))
    return hooks


def _make_rowwise_forward(module: Any, absent: dict[str, str]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward of a linear layer or of embeddings of which only some rows are in memory at a time."""

    def linear(inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _yield_request(_MatmulRequest(absent["weight"], module.out_features, inputs))
        if module.bias is None:
            return out
        bias = _request_parameters([(absent["bias"], None, None)])[0] if "bias" in absent else module.bias
        return out + bias

    def embedding(ids: torch.Tensor) -> torch.Tensor:
        rows, places = ids.unique(return_inverse=True)
        weight = torch.cat(_request_parameters([(absent["weight"], row, row + 1) for row in rows.tolist()]))
        return torch.nn.functional.embedding(places, weight)

    return linear if isinstance(module, torch.nn.Linear) else embedding
