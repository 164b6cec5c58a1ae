"""Forward passes of models whose weights are in files: each layer is read when the pass reaches it and released after its forward.

Memory holds one layer, whatever the size of the model. Several passes advance in step, as greenlets: each waits at a layer until the
others have reached one too, so that a weight that several of them need is read once, and their matmuls with it become one.
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

WRAPPED = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")


@dataclass(frozen=True)
class LayerOutput:
    """Inputs and output of an adapted layer in one pass. While `LayerCheck` runs, the layer's weights are still in memory.

    Attributes:
        args: (B, T, in) and whatever else the layer takes.
        output: (B, T, out).
        plain: the base layer's output for the same inputs if its weight is read block by block; None if it is whole in memory.
    """

    path: str
    module: Any
    args: tuple[Any, ...]
    output: Any
    plain: torch.Tensor | None


LayerCheck = Callable[[LayerOutput], None]


class NotWalkableError(Exception):
    """Why this model cannot compute layer by layer."""


@dataclass
class ForwardPass:
    """One forward pass.

    Attributes:
        model: transformers' model; its parameters on the meta device are read when they are needed.
        read: (name of a parameter, first row, last row + 1; None: all rows) → a key for its values in the cache, and a function that reads them.
        call: runs the model and returns the result of the pass.
        check: called after each adapted layer.
    """

    model: Any
    read: Callable[[str, int | None, int | None], tuple[Any, Callable[[], torch.Tensor]]]
    call: Callable[[], torch.Tensor]
    check: LayerCheck | None = None


@dataclass
class _ParameterRequest:
    """A pass waits for these parameters (name, first row, last row + 1), whose values are then filled in."""

    keys: list[tuple[str, int | None, int | None]]
    values: list[torch.Tensor] = field(default_factory=list)

    def fill_values(self, walk: ForwardPass, cache: dict[Any, torch.Tensor]) -> None:
        """Reads the values that are not in the cache."""
        for parameter in self.keys:
            key, read = walk.read(*parameter)
            if key not in cache:
                cache[key] = read()
            self.values.append(cache[key])


@dataclass
class _MatmulRequest:
    """A pass waits for inputs (…, in) times the transpose of a weight (rows, in), which is read block by block; values: (…, rows)."""

    key: str
    rows: int
    inputs: torch.Tensor
    values: torch.Tensor | None = None


def run_passes(passes: list[ForwardPass]) -> list[torch.Tensor]:
    """The result of each pass. All of them advance together, layer by layer.

    Raises: NotWalkableError: a model uses a weight outside of the layer that has it.
    """
    with ExitStack() as stack, torch.inference_mode():
        for model, check in {id(walk.model): (walk.model, walk.check) for walk in passes}.values():
            stack.enter_context(_read_when_reached(model, check))
        try:
            return _advance_passes(passes)
        except (NotImplementedError, RuntimeError, AttributeError) as error:
            if "meta" not in str(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise NotWalkableError(f"it uses weights outside of the layer that holds them ({reason})") from error


def _advance_passes(passes: list[ForwardPass]) -> list[torch.Tensor]:
    results: dict[int, torch.Tensor] = {}  # index of a pass → its result
    running = {index: greenlet(walk.call) for index, walk in enumerate(passes)}
    waiting: dict[int, _ParameterRequest | _MatmulRequest] = {}
    cache: dict[Any, torch.Tensor] = {}
    try:
        while running:
            _compute_matmuls(passes, {i: item for i, item in waiting.items() if isinstance(item, _MatmulRequest)})
            for index, routine in list(running.items()):
                if index in waiting:
                    request = waiting.pop(index)
                    if isinstance(request, _ParameterRequest):
                        request.fill_values(passes[index], cache)
                    output = routine.switch(request.values)
                else:
                    output = routine.switch()
                if routine.dead:
                    results[index] = output
                    del running[index]
                else:
                    waiting[index] = output
            requests = {i: item for i, item in waiting.items() if isinstance(item, _ParameterRequest)}
            needed = {passes[i].read(*parameter)[0] for i, item in requests.items() for parameter in item.keys}
            cache = {key: values for key, values in cache.items() if key in needed}
    finally:
        # After an error: the grad mode is the thread's, and the passes that still run would reset it whenever they are collected.
        for routine in running.values():
            if not routine.dead:
                routine.throw()
    return [results[index] for index in range(len(passes))]


def _compute_matmuls(passes: list[ForwardPass], requests: dict[int, _MatmulRequest]) -> None:
    """Computes the matmuls with the same weight (out, in) as one, block by block of its rows."""
    groups: dict[Any, list[int]] = {}  # key of a weight → indices of passes
    for index, request in requests.items():
        groups.setdefault(passes[index].read(request.key, None, None)[0], []).append(index)
    for indices in groups.values():
        first = requests[indices[0]]
        chunks = [requests[index].inputs.flatten(end_dim=-2) for index in indices]  # (tokens, in) each
        inputs, read = torch.cat(chunks), passes[indices[0]].read
        outputs = inputs.new_empty(len(inputs), first.rows)  # (tokens, out)
        blocks.map_blocks(
            partial(_multiply_rows, inputs, outputs),
            [(block, read(first.key, *block)[1]) for block in split_rows(first.rows, inputs.shape[-1])],
        )
        for index, output in zip(indices, outputs.split([len(chunk) for chunk in chunks]), strict=True):
            requests[index].values = output.reshape(*requests[index].inputs.shape[:-1], first.rows)


def _multiply_rows(
    inputs: torch.Tensor, outputs: torch.Tensor, part: tuple[RowBlock, Callable[[], torch.Tensor]]
) -> None:
    """Fills the columns of `outputs` (tokens, out) that belong to a block of the weight's rows."""
    block, read = part
    outputs[:, slice(*block)] = torch.nn.functional.linear(inputs, read())


def find_device(net: Any) -> torch.device:
    """Where a model on the meta device computes: where its tensors are that are not on it, such as an adapter's."""
    return next((p.device for p in net.parameters() if not p.is_meta), torch.device("cpu"))


def move_to_device(model: Any, device: torch.device) -> None:
    """Moves what is not on the meta device; inputs are expected there from then on."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(module, name, buffer.to(device))
    for parameter in model.parameters():
        if not parameter.is_meta:
            parameter.data = parameter.data.to(device)
    if device.type != "cpu":
        model.hf_device_map = {"": str(device)}  # read by `models.device.get_input_device`


def plain_name(name: str) -> str:
    """A parameter's name without the adapter's wrappers around its module."""
    return WRAPPED.sub("", f".{name}").removeprefix(".")


@contextmanager
def _read_when_reached(model: Any, check: LayerCheck | None) -> Iterator[None]:
    handles, patched = [], []
    users: Counter[int] = Counter()  # id of a module → passes that are within its forward
    for path, module, absent in _iter_load_units(model):
        if type(module) in (torch.nn.Linear, torch.nn.Embedding) and "weight" in absent:
            module.forward = _make_rowwise_forward(module, absent)
            patched.append(module)
        elif absent or check:
            handles += _register_hooks(path, module, absent, check, users)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in patched:
            del module.forward


def _iter_load_units(model: Any) -> Iterator[tuple[str, Any, dict[str, str]]]:
    """(path, module, absent) of each module that is loaded as a whole; absent: name of a parameter on the meta device → its name in the files."""
    loaded_whole: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{outer}.") for outer in loaded_whole):
            continue
        adapted = isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        whole = adapted and not is_row_wise(module)
        if whole:
            loaded_whole.append(path)
        skipped = "original_module." if isinstance(module, ModulesToSaveWrapper) else "-"
        absent = {
            name: plain_name(f"{path}.{name}" if path else name)
            for name, parameter in module.named_parameters(recurse=whole)
            if parameter.is_meta and not name.startswith(skipped)
        }
        if absent or adapted:
            yield path, module, absent


def is_row_wise(module: Any) -> bool:
    """Whether PEFT computes each row of the base layer's weight (out, in) independently of the others, in forward and in merge."""
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


def _yield_request(request: _ParameterRequest | _MatmulRequest) -> Any:
    parent = getcurrent().parent
    assert parent is not None, "a layer without weights computes only within `run_passes`"
    return parent.switch(request)


def _register_hooks(
    path: str, module: Any, absent: dict[str, str], check: LayerCheck | None, users: Counter[int]
) -> list[Any]:
    owners = {name: (module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in absent}
    on_meta = {name: getattr(owner, key) for name, (owner, key) in owners.items()}
    plain: list[torch.Tensor] = []  # outputs of the base layer

    def load(*_: Any) -> None:
        values = _request_parameters([(name, None, None) for name in absent.values()]) if absent else []
        users[id(module)] += 1
        for (owner, key), value in zip(owners.values(), values, strict=True):
            setattr(owner, key, torch.nn.Parameter(value, requires_grad=False))

    def release(_: Any, args: tuple[Any, ...], output: Any) -> None:
        if check and isinstance(module, BaseTunerLayer):
            check(LayerOutput(path, module, args, output, plain.pop() if plain else None))
        users[id(module)] -= 1
        if not users[id(module)]:
            for name, (owner, key) in owners.items():
                setattr(owner, key, on_meta[name])

    hooks = [module.register_forward_pre_hook(load), module.register_forward_hook(release)]
    if check and is_row_wise(module) and module.get_base_layer().weight.is_meta:
        hooks.append(module.get_base_layer().register_forward_hook(lambda *hook_args: plain.append(hook_args[-1])))
    return hooks


def _make_rowwise_forward(module: Any, absent: dict[str, str]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Forward of a linear layer or an embedding whose weight is read in blocks of rows."""

    def linear(inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = _yield_request(_MatmulRequest(absent["weight"], module.out_features, inputs))
        if module.bias is None:
            return outputs  # (…, out)
        bias = _request_parameters([(absent["bias"], None, None)])[0] if "bias" in absent else module.bias
        return outputs + bias

    def embedding(ids: torch.Tensor) -> torch.Tensor:
        rows, indices = ids.unique(return_inverse=True)  # (n,) and (B, T)
        weight = torch.cat(
            _request_parameters([(absent["weight"], row, row + 1) for row in rows.tolist()])
        )  # (n, width)
        return torch.nn.functional.embedding(indices, weight)

    return linear if isinstance(module, torch.nn.Linear) else embedding
