"""Merges from files to files, tensor by tensor: memory holds one layer, whatever the size of the model.

PEFT's own `merge` computes each layer in float32, on a model whose other weights are on the meta device; the result is rounded once.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper
from transformers.pytorch_utils import Conv1D

from peftrun.adapters.layer_walk import find_device, is_row_wise
from peftrun.adapters.merge import sidecar_files
from peftrun.adapters.trainable_tokens import replace_rows
from peftrun.artifacts.classifier_head import TASK_KINDS
from peftrun.compat.torch import copy_module
from peftrun.io import safetensors_header, safetensors_stream
from peftrun.io.safetensors_stream import Part, PlannedTensor, RowBlock, StoredTensor, TensorFile
from peftrun.system import malloc

MERGEABLE_LAYERS = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, Conv1D)


class NotStreamableError(Exception):
    """Why this merge needs the whole model in memory."""


@dataclass(frozen=True)
class _BaseTensors:
    """The base model's tensors, while a merge (or with `undo` its reversal) is computed from them.

    Attributes:
        stored: parameter name → tensor.
        buffer: flat memory for the largest weight that is merged whole, reused from layer to layer, where the adapter is.
        last: path and merged parameters of the layer that was merged last.
    """

    stored: dict[str, StoredTensor]
    buffer: torch.Tensor
    undo: bool
    last: dict[str, Any] = field(default_factory=dict)

    def read_float(self, value: torch.Tensor, key: str) -> torch.Tensor:
        """The parameter `key` in float32: a copy of `value`, or read from the files if that is on the meta device."""
        buffer = self.buffer if key.endswith(".weight") else None
        if not value.is_meta:
            return value.detach().clone()
        return self.stored[key].read_float(buffer, self.device)

    @property
    def device(self) -> torch.device:
        """Where sums are computed."""
        return self.buffer.device


class MergedFiles:
    """The weight files of a merge: their headers are written at once, each tensor when it is requested.

    Attributes:
        seconds: spent writing so far.
    """

    def __init__(
        self, folder: Path, plans: dict[Path, list[PlannedTensor]], after: Callable[[Path, Path], object] | None
    ) -> None:
        """`plans`: file of the base model → tensors of the file to write. `after`: called with both files once all tensors are written."""
        self.seconds, self._after = 0.0, after
        self._files = {folder / file.name: (file, TensorFile(folder / file.name, plan)) for file, plan in plans.items()}

    def write(self, tensor: StoredTensor) -> None:
        """Writes a tensor if it is not written yet. Raises: NotStreamableError: see `begin_merged`."""
        started = time.perf_counter()
        base, file = self._files[tensor.file]
        if tensor.entry.name in file.unwritten:
            file.write(tensor.entry.name)
            if self._after and not file.unwritten:
                self._after(base, file.path)
        self.seconds += time.perf_counter() - started

    def write_rest(self) -> None:
        """Writes the tensors that nobody has requested."""
        for path, (_, file) in self._files.items():
            for tensor in safetensors_stream.list_stored_tensors(path) if file.unwritten else []:
                self.write(tensor)


def begin_merged(
    net: Any,
    name: str,
    base: Path,
    folder: Path,
    dtype: torch.dtype | None,
    *,
    undo: bool = False,
    after: Callable[[Path, Path], object] | None = None,
) -> MergedFiles:
    """Writes a merged model into `folder` except its weights: config, tokenizer, headers of the weight files, which are named as the base model's.

    Args: net: see `meta_model.build_on_meta`. base: the base model's folder. dtype: of floating tensors; None: each as stored.
        undo: `base` is a merged model, and the model before the merge is written.
        after: called with each file of the base model and the one written from it, once that is complete.
    Returns: writes the weights.
    Raises: NotStreamableError: PEFT needs more than one layer at a time; `folder` is then of no use.
    """
    model = net.get_base_model()
    files = {file: safetensors_stream.list_stored_tensors(file) for file in safetensors_header.list_weight_files(base)}
    if net.peft_config[name].task_type in TASK_KINDS:
        # an encoder's files may have tensors that a classifier lacks: a pooler, the head of its pre-training
        parameters = {_strip_wrappers(key) for key, _ in model.named_parameters()}
        for file, tensors in files.items():
            files[file] = [t for key, t in map_by_parameter(model, tensors).items() if key in parameters]
    stored = map_by_parameter(model, [tensor for tensors in files.values() for tensor in tensors])
    sources = add_tied(model, stored)
    changes = _plan_changes(net, name, sources, undo)
    untied = _untie_output(model, changes, sources)
    sizes: Counter[torch.dtype] = Counter()  # bytes
    for tensor in stored.values():
        sizes[tensor.dtype] += tensor.entry.end - tensor.entry.begin
    common_dtype = dtype or max(sizes, key=lambda stored_dtype: sizes[stored_dtype])
    names = {id(tensor): key for key, tensor in stored.items()}
    plans = {
        file: [_plan_tensor(names[id(tensor)], tensor, changes, dtype) for tensor in tensors]
        for file, tensors in files.items()
    }
    computed = changes | untied
    shapes = {_strip_wrappers(key): tuple(p.shape) for key, p in model.named_parameters(remove_duplicate=False)}
    plans[max(plans)] += [
        PlannedTensor(key, common_dtype, shapes[key], None, computed[key])
        for key in sorted(computed.keys() - stored.keys())
    ]
    if len(plans) > 1:
        weight_map = {tensor.name: file.name for file, plan in plans.items() for tensor in plan}
        safetensors_stream.write_index(
            folder, weight_map, sum(tensor.size for plan in plans.values() for tensor in plan)
        )
    sidecar_files.copy_sidecar_files(base, folder)
    model.config.architectures, model.config.dtype = [type(model).__name__], common_dtype
    if untied:
        model.config.tie_word_embeddings = False
    model.config.save_pretrained(folder)
    return MergedFiles(folder, plans, after)


def _strip_wrappers(key: str) -> str:
    return key.replace(".base_layer.", ".").replace(".original_module.", ".").replace(".token_adapter.", ".")


def map_by_parameter(model: Any, tensors: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    """The model's parameter names → tensors of a file, whose names may lack or add the prefix of the model's body."""
    names, prefix = {_strip_wrappers(key) for key, _ in model.named_parameters()}, f"{model.base_model_prefix}."
    stored = {}
    for tensor in tensors:
        key = tensor.entry.name
        candidates = (key, prefix + key, key.removeprefix(prefix))
        stored[next((candidate for candidate in candidates if candidate in names), key)] = tensor
    return stored


def add_tied(model: Any, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The same with both names of tied parameters, which are stored once."""
    sources = dict(stored)
    for target, source in model.all_tied_weights_keys.items():
        tensor = stored.get(source) or stored.get(target)
        if tensor is not None:
            sources.setdefault(target, tensor)
            sources.setdefault(source, tensor)
    return sources


def map_stored_tensors(model: Any, folder: Path) -> dict[str, StoredTensor]:
    """The model's parameter names → tensors of a model folder; tied ones under both names."""
    tensors = [
        tensor
        for file in safetensors_header.list_weight_files(folder)
        for tensor in safetensors_stream.list_stored_tensors(file)
    ]
    return add_tied(model, map_by_parameter(model, tensors))


def _plan_changes(net: Any, name: str, stored: dict[str, StoredTensor], undo: bool) -> dict[str, list[Part]]:
    """Parameters that the adapter changes → how their merged values are computed."""
    modules = dict(net.get_base_model().named_modules())
    buffer = torch.empty(count_whole_values(net, name, stored), device=find_device(net))
    sources = _BaseTensors(stored, buffer, undo)
    changes: dict[str, list[Part]] = {}
    planned: list[str] = []
    for path, module in modules.items():
        if any(path.startswith(f"{outer}.") for outer in planned):
            continue
        if isinstance(module, BaseTunerLayer):
            changes |= _plan_layer(module, path, name, sources)
        elif isinstance(module, ModulesToSaveWrapper):
            changes |= _plan_replacements(module.modules_to_save[name].named_parameters(), path, sources)
        elif isinstance(module, TrainableTokensWrapper):
            changes |= _plan_token_rows(module.token_adapter, path, name, sources)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            raise NotStreamableError(f"{path} is a {type(module).__name__}")
        else:
            trained = [(key, value) for key, value in module.named_parameters(recurse=False) if not value.is_meta]
            changes |= _plan_replacements(trained, path, sources)
            continue
        planned.append(path)
    return changes


def count_whole_values(net: Any, name: str, stored: dict[str, StoredTensor]) -> int:
    """Number of values of the largest weight that is merged whole rather than by rows; 0 if there is none."""
    modules = net.get_base_model().named_modules()
    layers = [
        path for path, module in modules if isinstance(module, BaseTunerLayer) and not merges_by_rows(module, name)
    ]
    weights = [stored.get(f"{path}.weight") for path in layers]
    return max((weight.count for weight in weights if weight), default=0)


def _plan_replacements(
    trained: Iterable[tuple[str, torch.Tensor]], path: str, sources: _BaseTensors
) -> dict[str, list[Part]]:
    changes: dict[str, list[Part]] = {f"{path}.{key}": _whole(value.detach) for key, value in trained}
    if changes and sources.undo:
        raise NotStreamableError(f"the merge replaced the base model's {next(iter(changes))} by the adapter's")
    return changes


def _plan_token_rows(token_adapter: Any, path: str, name: str, sources: _BaseTensors) -> dict[str, list[Part]]:
    """The base model's weight with the rows that the adapter trains; nothing for a weight that is tied to it."""
    if token_adapter.tied_adapter or name not in token_adapter.trainable_tokens_delta:
        return {}
    weight = sources.stored.get(f"{path}.weight")  # (vocabulary, in)
    if weight is None:
        raise NotStreamableError(f"the base model's files hold no {path}.weight")
    if sources.undo:
        raise NotStreamableError(f"the merge replaced rows of the base model's {path}")

    def replace_block(block: RowBlock) -> torch.Tensor:
        return replace_rows(token_adapter, name, weight.rows(*block).read_float(device=sources.device), block)

    width = weight.entry.shape[1]
    return {f"{path}.weight": [(block[0] * width, partial(replace_block, block)) for block in weight.row_blocks()]}


def _plan_layer(module: Any, path: str, name: str, sources: _BaseTensors) -> dict[str, list[Part]]:
    layer = module.get_base_layer()
    if not isinstance(layer, MERGEABLE_LAYERS) or not hasattr(module, "merge"):
        raise NotStreamableError(f"{path} is a {type(module).__name__} over a {type(layer).__name__}")
    if sources.undo and getattr(module, "use_dora", {}).get(name):
        raise NotStreamableError(f"DoRA gave {path} another length, and the length it had is not stored")
    unset = [key for key, value in module.named_parameters() if value.is_meta and not key.startswith("base_layer.")]
    if unset:
        raise NotStreamableError(f"PEFT saves no {unset[0]} of {path}")
    keys = [key for key, _ in layer.named_parameters(recurse=False)]
    missing = [key for key in keys if getattr(layer, key).is_meta and f"{path}.{key}" not in sources.stored]
    if missing:
        raise NotStreamableError(f"the base model's files hold no {path}.{missing[0]}")
    if not merges_by_rows(module, name):
        return {f"{path}.{key}": _whole(partial(_merge_parameter, module, key, path, name, sources)) for key in keys}
    weight = sources.stored[f"{path}.weight"]  # (out, in)

    def merge_block(block: RowBlock) -> torch.Tensor:
        values = weight.rows(*block).read_float(device=sources.device)
        return merge_rows(module, path, name, values, block, undo=sources.undo)

    biases: dict[str, list[Part]] = {
        f"{path}.{key}": _whole(partial(sources.read_float, getattr(layer, key), f"{path}.{key}"))
        for key in keys
        if key != "weight"  # a merge by rows changes no bias
    }
    width = weight.entry.shape[1]
    return biases | {
        f"{path}.weight": [(block[0] * width, partial(merge_block, block)) for block in weight.row_blocks()]
    }


def _whole(compute: Callable[[], torch.Tensor]) -> list[Part]:
    return [(0, compute)]


def merges_by_rows(module: Any, name: str) -> bool:
    """Whether the adapter `name` is merged into a layer's weight block by block of its rows."""
    return is_row_wise(module) and name in module.lora_B and module.get_base_layer().weight.is_meta


def merge_rows(
    module: Any, path: str, name: str, values: torch.Tensor, block: RowBlock, *, undo: bool = False
) -> torch.Tensor:
    """Rows of a layer's weight after PEFT has merged the adapter into them, (rows of the block, in); see `layer_walk.is_row_wise`.

    Safe to call from several threads for one layer: PEFT merges into a copy of it that has only these rows.
    Args: values: the base model's rows, which are overwritten. Raises: NotStreamableError: see `merge_layer`.
    """
    layer, parts = module.get_base_layer(), {}
    factors = {"lora_A": module.lora_A[name].weight, "lora_B": module.lora_B[name].weight[slice(*block)]}
    for key, value in factors.items():  # (r, in), (rows of the block, r)
        parameter = torch.nn.Parameter(value.detach(), requires_grad=False)
        parts[key] = torch.nn.ModuleDict({name: copy_module(getattr(module, key)[name], {"weight": parameter})})
    others = {key: None for key, _ in layer.named_parameters(recurse=False) if key != "weight"}
    view = copy_module(module, modules={**parts, "base_layer": copy_module(layer, others)})
    view.merged_adapters = []
    return merge_layer(view, path, name, {"weight": values}, undo)["weight"]


def _merge_parameter(module: Any, key: str, path: str, name: str, sources: _BaseTensors) -> torch.Tensor:
    """The parameter `key` of a layer after PEFT has merged the adapter into it, in float32."""
    if sources.last.get("path") != path:
        parameters = module.get_base_layer().named_parameters(recurse=False)
        values = {other: sources.read_float(value, f"{path}.{other}") for other, value in parameters}
        sources.last.update(path=path, merged=merge_layer(module, path, name, values, sources.undo))
        malloc.release_after_growth()
    merged: torch.Tensor = sources.last["merged"][key]
    return merged


def merge_layer(
    module: Any, path: str, name: str, values: dict[str, torch.Tensor], undo: bool = False
) -> dict[str, torch.Tensor]:
    """All parameters of a layer after PEFT has merged the adapter into it, or with `undo` subtracted it again.

    Args: module: PEFT's layer. values: the base layer's parameters by name; they may be overwritten.
    Raises: NotStreamableError: PEFT cannot, or a number is not finite.
    """
    layer = module.get_base_layer()
    before = dict(layer.named_parameters(recurse=False))
    # PEFT writes into the adapter where it must fulfil a condition first (OFT with coft=true)
    adapter = {p: p.data.clone() for key, p in module.named_parameters() if not key.startswith("base_layer.")}
    try:
        for key, value in values.items():
            setattr(layer, key, torch.nn.Parameter(value, requires_grad=False))
        if undo:
            module.merged_adapters.append(name)
            module.unmerge()
        else:
            module.merge(safe_merge=False, adapter_names=[name])
        merged = {key: parameter.data for key, parameter in layer.named_parameters(recurse=False)}
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise NotStreamableError(f"{path}: {str(error).splitlines()[0]}") from error
    finally:
        module.merged_adapters.clear()
        for parameter, value in adapter.items():
            parameter.data = value
        for key in values:
            setattr(layer, key, before[key])
    if merged.keys() != values.keys():
        raise NotStreamableError(f"{path}: PEFT merges into parameters that the base model lacks")
    if not all(torch.isfinite(value.sum()) for value in merged.values()):
        raise NotStreamableError(f"{path} has NaN or infinite values after the merge")
    return merged


def _untie_output(
    model: Any, changes: dict[str, list[Part]], sources: dict[str, StoredTensor]
) -> dict[str, list[Part]]:
    """Output weights and embeddings that were tied, and cannot be if the adapter changes one of them."""
    head = model.get_output_embeddings()
    head_weight = next((f"{path}.weight" for path, module in model.named_modules() if module is head), "")
    untied: dict[str, list[Part]] = {}
    for target, source in model.all_tied_weights_keys.items():
        if target not in changes and (source not in changes or _follows_token_rows(model, target)):
            continue
        # Some encoder-decoders scale the output of tied weights: untied, they would compute something else.
        if model.config.is_encoder_decoder or target != head_weight:
            raise NotStreamableError(f"{target} is tied to {source}, which the adapter changes")
        untied |= {key: changes.get(key) or sources[key].parts() for key in (target, source)}
    return untied


def _follows_token_rows(model: Any, target: str) -> bool:
    """Whether a tied weight takes the trained rows of the embeddings, so that both stay one tensor."""
    wrapper = model.get_submodule(target.rpartition(".")[0])
    return isinstance(wrapper, TrainableTokensWrapper) and wrapper.token_adapter.tied_adapter is not None


def _plan_tensor(
    key: str, tensor: StoredTensor, changes: dict[str, list[Part]], dtype: torch.dtype | None
) -> PlannedTensor:
    new_dtype = dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype
    parts = changes.get(key)
    if parts is None and new_dtype != tensor.dtype:
        parts = tensor.parts()
    return PlannedTensor(key, new_dtype, tensor.entry.shape, tensor, parts)
