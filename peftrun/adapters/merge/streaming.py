"""A merge from files to files, tensor by tensor: memory holds one layer, whatever the size of the model.

PEFT's own `merge` computes each layer, on a model whose other weights are nowhere, in float32; the result is
rounded once.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from transformers.pytorch_utils import Conv1D

from peftrun.adapters.layer_walk import is_row_wise
from peftrun.adapters.merge import sidecar_files
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
    """The base's tensors by name, and memory for the largest adapted weight, which each comes to in turn."""

    found: dict[str, StoredTensor]
    room: torch.Tensor
    undo: bool
    last: dict[str, Any] = field(default_factory=dict)  # the layer that was merged last: its path and parameters

    def read_float(self, value: torch.Tensor, key: str) -> torch.Tensor:
        """The parameter `key`: as it is, or read from the base's files where it is nowhere in memory."""
        room = self.room if key.endswith(".weight") else None
        return self.found[key].read_float(room) if value.is_meta else value.detach().clone()


class MergedFiles:
    """The weight files of a merge, which are there with their headers; each tensor is written when it is asked for.

    Attributes:
        seconds: that the writing has taken.
    """

    def __init__(
        self, folder: Path, plans: dict[Path, list[PlannedTensor]], after: Callable[[Path, Path], object] | None
    ) -> None:
        """`after`: called with each file of the base and the one written from it, once all tensors are in it."""
        self.seconds, self._after = 0.0, after
        self._files = {folder / file.name: (file, TensorFile(folder / file.name, one)) for file, one in plans.items()}

    def write(self, one: StoredTensor) -> None:
        """Writes a tensor, unless it is. Raises: NotStreamableError: see `begin_merged`."""
        started = time.perf_counter()
        base, file = self._files[one.file]
        if one.entry.name in file.unwritten:
            file.write(one.entry.name)
            if self._after and not file.unwritten:
                self._after(base, file.path)
        self.seconds += time.perf_counter() - started

    def write_rest(self) -> None:
        """Writes all that no one has asked for."""
        for path, (_, file) in self._files.items():
            for one in safetensors_stream.list_stored_tensors(path) if file.unwritten else []:
                self.write(one)


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
    """Writes a merged model without its weights into `folder`: config, tokenizer. What is returned writes weights, in files as the base's.

    Args: net: see `meta_model.build_on_meta`. base: the base's folder. dtype: of floating tensors; None: each as stored.
        undo: `base` is a merged model, and what is written is the model before the merge.
        after: called with each file of the base and the one written from it, once it is complete.
    Raises: NotStreamableError: PEFT needs more than one layer at a time; what was written so far is of no use.
    """
    model = net.get_base_model()
    files = {file: safetensors_stream.list_stored_tensors(file) for file in safetensors_header.list_weight_files(base)}
    if net.peft_config[name].task_type in TASK_KINDS:
        files = _drop_other_heads(model, files)
    found = map_by_parameter(model, [one for parts in files.values() for one in parts])
    sources = add_tied(model, found)
    changes = _plan_changes(net, name, _BaseTensors(sources, _allocate_buffer(net, name, sources), undo))
    untied = _untie_output(model, changes, sources)
    usual = dtype or _most_common_dtype(found)
    names = {id(one): key for key, one in found.items()}
    plans = {
        file: [_plan_tensor(names[id(one)], one, changes, dtype) for one in parts] for file, parts in files.items()
    }
    more = changes | untied
    shapes = {_strip_wrappers(key): tuple(one.shape) for key, one in model.named_parameters(remove_duplicate=False)}
    plans[max(plans)] += [
        PlannedTensor(key, usual, shapes[key], None, more[key]) for key in sorted(more.keys() - found.keys())
    ]
    if len(plans) > 1:
        places = {one.name: file.name for file, parts in plans.items() for one in parts}
        safetensors_stream.write_index(folder, places, sum(one.size for parts in plans.values() for one in parts))
    sidecar_files.copy_sidecar_files(base, folder)
    _write_config(model, folder, usual, tied=not untied)
    return MergedFiles(folder, plans, after)


def _drop_other_heads(model: Any, files: dict[Path, list[StoredTensor]]) -> dict[Path, list[StoredTensor]]:
    """An encoder's file may hold what a classifier has no use for: a pooler, the head of its pre-training."""
    known = {_strip_wrappers(key) for key, _ in model.named_parameters()}
    kept = {}
    for file, parts in files.items():
        named = map_by_parameter(model, parts)
        kept[file] = [one for key, one in named.items() if key in known]
    return kept


def _strip_wrappers(key: str) -> str:
    return key.replace(".base_layer.", ".").replace(".original_module.", ".")


def map_by_parameter(model: Any, parts: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    """The base's tensors under the names of the model's parameters; a file may lack, or have, the name of the body before them."""
    names, prefix = {_strip_wrappers(key) for key, _ in model.named_parameters()}, f"{model.base_model_prefix}."
    found = {}
    for one in parts:
        key = one.entry.name
        choices = (key, prefix + key, key.removeprefix(prefix))
        found[next((choice for choice in choices if choice in names), key)] = one
    return found


def add_tied(model: Any, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The same, and tied parameters that are stored once under both their names."""
    sources = dict(found)
    for target, source in model.all_tied_weights_keys.items():
        stored = found.get(source) or found.get(target)
        if stored is not None:
            sources.setdefault(target, stored)
            sources.setdefault(source, stored)
    return sources


def map_stored_tensors(model: Any, folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model folder by the model's names of parameters; tied ones under both."""
    parts = [
        one
        for file in safetensors_header.list_weight_files(folder)
        for one in safetensors_stream.list_stored_tensors(file)
    ]
    return add_tied(model, map_by_parameter(model, parts))


def _plan_changes(net: Any, name: str, sources: _BaseTensors) -> dict[str, list[Part]]:
    """For every parameter that the adapter changes, how its merged value is computed."""
    changes: dict[str, list[Part]] = {}
    handled: list[str] = []
    for path, module in net.get_base_model().named_modules():
        if any(path.startswith(f"{outer}.") for outer in handled):
            continue
        if isinstance(module, BaseTunerLayer):
            changes |= _plan_layer(module, path, name, sources)
        elif isinstance(module, ModulesToSaveWrapper):
            changes |= _plan_replacements(module.modules_to_save[name].named_parameters(), path, sources)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            raise NotStreamableError(f"{path} is a {type(module).__name__}")
        else:
            own = module.named_parameters(recurse=False)
            changes |= _plan_replacements([(key, value) for key, value in own if not value.is_meta], path, sources)
            continue
        handled.append(path)
    return changes


def _allocate_buffer(net: Any, name: str, found: dict[str, StoredTensor]) -> torch.Tensor:
    """Memory for the largest weight that is merged whole."""
    layers = [(path, one) for path, one in net.get_base_model().named_modules() if isinstance(one, BaseTunerLayer)]
    weights = [found.get(f"{path}.weight") for path, one in layers if not merges_by_rows(one, name)]
    return torch.empty(max((one.count for one in weights if one), default=0))


def _plan_replacements(
    own: Iterable[tuple[str, torch.Tensor]], path: str, sources: _BaseTensors
) -> dict[str, list[Part]]:
    changes: dict[str, list[Part]] = {f"{path}.{key}": _whole(value.detach) for key, value in own}
    if changes and sources.undo:
        raise NotStreamableError(f"the merge put the adapter's {next(iter(changes))} in the place of the base's")
    return changes


def _plan_layer(module: Any, path: str, name: str, sources: _BaseTensors) -> dict[str, list[Part]]:
    layer = module.get_base_layer()
    if not isinstance(layer, MERGEABLE_LAYERS) or not hasattr(module, "merge"):
        raise NotStreamableError(f"{path} is a {type(module).__name__} over a {type(layer).__name__}")
    if sources.undo and getattr(module, "use_dora", {}).get(name):
        raise NotStreamableError(f"DoRA gave {path} another length, and the length it had is kept nowhere")
    unset = [key for key, value in module.named_parameters() if value.is_meta and not key.startswith("base_layer.")]
    if unset:
        raise NotStreamableError(f"PEFT saves no {unset[0]} of {path}")
    keys = [key for key, _ in layer.named_parameters(recurse=False)]
    absent = [key for key in keys if getattr(layer, key).is_meta and f"{path}.{key}" not in sources.found]
    if absent:
        raise NotStreamableError(f"the base's files hold no {path}.{absent[0]}")
    changes = {f"{path}.{key}": _whole(partial(_merge_parameter, module, key, path, name, sources)) for key in keys}
    if not merges_by_rows(module, name):
        return changes
    stored = sources.found[f"{path}.weight"]
    width, merge = stored.entry.shape[1], partial(_merge_block, module, path, name, sources)
    biases: dict[str, list[Part]] = {
        f"{path}.{key}": _whole(partial(sources.read_float, getattr(layer, key), f"{path}.{key}"))
        for key in keys
        if key != "weight"  # PEFT leaves it as it is
    }
    return biases | {f"{path}.weight": [(block[0] * width, partial(merge, block)) for block in stored.row_blocks()]}


def _whole(compute: Callable[[], torch.Tensor]) -> list[Part]:
    return [(0, compute)]


def merges_by_rows(module: Any, name: str) -> bool:
    """Whether the adapter `name` is merged into some rows of a layer's weight at a time, as they are read."""
    return is_row_wise(module) and name in module.lora_B and module.get_base_layer().weight.is_meta


def _merge_block(module: Any, path: str, name: str, sources: _BaseTensors, block: RowBlock) -> torch.Tensor:
    values = sources.found[f"{path}.weight"].rows(*block).read_float()
    return merge_rows(module, path, name, values, block, undo=sources.undo)


def merge_rows(
    module: Any, path: str, name: str, values: torch.Tensor, block: RowBlock, *, undo: bool = False
) -> torch.Tensor:
    """Rows of a layer's weight after PEFT has merged the adapter into them; see `layer_walk.is_row_wise` and `merge_layer`.

    Args: values: the base's rows; they are overwritten. block: which they are. Several threads may be here with the same layer.
    """
    return merge_layer(_view_rows(module, name, block), path, name, {"weight": values}, undo)["weight"]


def _view_rows(module: Any, name: str, block: RowBlock) -> Any:
    """PEFT's layer over these rows of its base layer alone."""
    layer = module.get_base_layer()
    others = {key: None for key, _ in layer.named_parameters(recurse=False) if key != "weight"}
    down, up = module.lora_A[name].weight, module.lora_B[name].weight[slice(*block)]
    own = {key: _with_weight(getattr(module, key)[name], value) for key, value in (("lora_A", down), ("lora_B", up))}
    children = {key: torch.nn.ModuleDict({name: one}) for key, one in own.items()}
    view = copy_module(module, modules={**children, "base_layer": copy_module(layer, others)})
    view.merged_adapters = []
    return view


def _with_weight(layer: Any, value: torch.Tensor) -> Any:
    """The same layer with a parameter of its own."""
    return copy_module(layer, {"weight": torch.nn.Parameter(value.detach(), requires_grad=False)})


def _merge_parameter(module: Any, wanted: str, path: str, name: str, sources: _BaseTensors) -> torch.Tensor:
    """One parameter of a layer after PEFT has merged the adapter into it, in float32, whole."""
    if sources.last.get("path") != path:
        own = module.get_base_layer().named_parameters(recurse=False)
        values = {key: sources.read_float(value, f"{path}.{key}") for key, value in own}
        sources.last.update(path=path, merged=merge_layer(module, path, name, values, sources.undo))
        malloc.release_after_growth()
    merged: torch.Tensor = sources.last["merged"][wanted]
    return merged


def merge_layer(
    module: Any, path: str, name: str, values: dict[str, torch.Tensor], undo: bool = False
) -> dict[str, torch.Tensor]:
    """Every parameter of a layer after PEFT has merged the adapter into it, or with `undo` taken it out again.

    Args: module: PEFT's layer. values: the base's parameters of it, by name; they may be overwritten.
    Raises: NotStreamableError: PEFT cannot, or a number is not finite.
    """
    layer = module.get_base_layer()
    before = dict(layer.named_parameters(recurse=False))
    # PEFT writes into the adapter where it must fulfil a condition first (OFT with coft=true)
    own = {one: one.data.clone() for key, one in module.named_parameters() if not key.startswith("base_layer.")}
    try:
        for key, value in values.items():
            setattr(layer, key, torch.nn.Parameter(value, requires_grad=False))
        if undo:
            module.merged_adapters.append(name)
            module.unmerge()
        else:
            module.merge(safe_merge=False, adapter_names=[name])
        merged = {key: one.data for key, one in layer.named_parameters(recurse=False)}
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise NotStreamableError(f"{path}: {str(error).splitlines()[0]}") from error
    finally:
        module.merged_adapters.clear()
        for one, value in own.items():
            one.data = value
        for key in values:
            setattr(layer, key, before[key])
    if merged.keys() != values.keys():
        raise NotStreamableError(f"{path}: PEFT merges into parameters that the base has not")
    if not all(torch.isfinite(value.sum()) for value in merged.values()):
        raise NotStreamableError(f"{path} holds numbers that are not finite after the merge")
    return merged


def _untie_output(
    model: Any, changes: dict[str, list[Part]], sources: dict[str, StoredTensor]
) -> dict[str, list[Part]]:
    """Output weights that were tied to the embeddings and no longer can be, since the adapter changes one of the two."""
    untied: dict[str, list[Part]] = {}
    for target, source in model.all_tied_weights_keys.items():
        if target not in changes and source not in changes:
            continue
        # Some encoder-decoders scale the output of tied weights: parted, they would compute something else.
        if (
            model.config.is_encoder_decoder
            or model.get_output_embeddings() is None
            or target != _output_weight_name(model)
        ):
            raise NotStreamableError(f"{target} is tied to {source}, which the adapter changes")
        untied |= {key: changes.get(key) or sources[key].parts() for key in (target, source)}
    return untied


def _output_weight_name(model: Any) -> str:
    head = model.get_output_embeddings()
    return next((f"{path}.weight" for path, module in model.named_modules() if module is head), "")


def _plan_tensor(
    key: str, one: StoredTensor, changes: dict[str, list[Part]], dtype: torch.dtype | None
) -> PlannedTensor:
    wanted = dtype if dtype is not None and one.dtype.is_floating_point else one.dtype
    parts = changes.get(key)
    if parts is None and wanted != one.dtype:
        parts = one.parts()
    return PlannedTensor(key, wanted, one.entry.shape, one, parts)


def _most_common_dtype(found: dict[str, StoredTensor]) -> torch.dtype:
    sizes: dict[torch.dtype, int] = {}
    for one in found.values():
        sizes[one.dtype] = sizes.get(one.dtype, 0) + one.entry.end - one.entry.begin
    return max(sizes, key=lambda dtype: sizes[dtype])


def _write_config(model: Any, folder: Path, dtype: torch.dtype, *, tied: bool) -> None:
    config = model.config
    config.architectures, config.dtype = [type(model).__name__], dtype
    if not tied:
        config.tie_word_embeddings = False
    config.save_pretrained(folder)
