"""Attaches an adapter for each cell to one base model: fresh ones, and saved ones that are trained further."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import MIN_TARGET_MODULES_FOR_OPTIMIZATION
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from peftrun.adapters import add, attach, hot_swap, load, new_tokens, parent, target_modules
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.compat.peft import expand_target_modules
from peftrun.errors import PeftrunError
from peftrun.models.base import LoadedBase
from peftrun.result import TrainAlone


@dataclass(frozen=True)
class CellAdapter:
    """What a cell trains: group `lora`, the seed of a fresh adapter's weights, and the adapter that it continues, if any."""

    lora: Any
    seed: int
    parent: AdapterRef | None = None
    allow_base_mismatch: bool = False


@dataclass(frozen=True)
class _ReadyCell:
    """A cell's adapter before it is attached. `config`: PEFT's; `resolved`: with full names; `plain`: the base model's logits, for a proof."""

    cell: CellAdapter
    config: Any
    resolved: Any
    plain: torch.Tensor | None


def attach_cells(base: LoadedBase, cells: dict[str, CellAdapter]) -> tuple[Any, dict[str, PeftrunError | TrainAlone]]:
    """The base model with an adapter for each cell (by name), each with the weights of a run of its own.

    Returns: the PEFT model (None if no cell is left), and cell → why it has no adapter: an error, or layers that cannot be stacked.
    """
    ready: dict[str, _ReadyCell] = {}
    refused: dict[str, PeftrunError | TrainAlone] = {}
    for name, cell in cells.items():  # all before the first adapter, which changes the names of modules
        try:
            ready[name] = _prepare_cell(base, name, cell)
        except PeftrunError as fault:
            refused[name] = fault
    for name in list(ready):
        layers = map(base.model.get_submodule, ready[name].resolved.target_modules)
        unstackable = {type(layer).__name__ for layer in layers if not isinstance(layer, attach.LINEAR_LAYERS)}
        if unstackable:
            refused[name] = TrainAlone(f"lora.target_modules names {min(unstackable)} layers")
            del ready[name]
    transposed = any(isinstance(module, Conv1D) for module in base.model.modules())
    net: Any = None
    for name, prepared in ready.items():
        try:
            net = _attach_cell(base, net, name, prepared)
            restore_requested_targets(net.peft_config[name], prepared.config)
            net.peft_config[name].fan_in_fan_out = transposed  # what PEFT sets it to for a single adapter
            _verify_parent(base, net, name, prepared)
        except PeftrunError as fault:
            refused[name] = fault
            hot_swap.hot_remove(net, name)
    return net, refused


def _prepare_cell(base: LoadedBase, name: str, cell: CellAdapter) -> _ReadyCell:
    plain = None
    if cell.parent is None:
        target_modules.check_target_modules(base.model, cell.lora)
        config = attach.build_peft_config(base, cell.lora, None)
    else:
        parent.check_parent(base, replace(cell.parent, name=name), cell.allow_base_mismatch)
        config = parent.read_trainable_config(cell.parent, cell.lora)
        plain = parent.compute_plain_logits(base, cell.parent)
    return _ReadyCell(cell, config, resolve_targets(base.model, config), plain)


def _attach_cell(base: LoadedBase, net: Any, name: str, ready: _ReadyCell) -> Any:
    """The PEFT model (`net`; None: a new one) with one more adapter."""
    cell = ready.cell
    set_seed(cell.seed)
    if cell.parent is not None:
        return add.add_adapter(base, base.model, net, replace(cell.parent, name=name), ready.resolved)
    try:
        if net is None:
            net = get_peft_model(base.model, ready.resolved, adapter_name=name)
        else:
            net.add_adapter(name, ready.resolved)
        new_tokens.start_at_mean(net, base, name)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise attach.to_config_error(error, cell.lora, base) from error
    return net


def _verify_parent(base: LoadedBase, net: Any, name: str, ready: _ReadyCell) -> None:
    """Raises: AdapterError, ProofError: the adapter that a cell continues is not loaded as it was saved."""
    if ready.cell.parent is not None and ready.plain is not None:
        load.verify_load(base, net.eval(), replace(ready.cell.parent, name=name), ready.plain)


def resolve_targets(model: Any, config: Any) -> Any:
    """A copy of the config with the full names of its target modules, which select the same when other adapters are attached already."""
    expanded = expand_target_modules(copy.copy(config), model)
    names = {name for name, _ in model.named_modules() if check_target_module_exists(expanded, name)}
    resolved = copy.copy(config)
    resolved.target_modules, resolved.exclude_modules, resolved.layers_to_transform = names, None, None
    return resolved


def restore_requested_targets(attached: Any, config: Any) -> None:
    """Puts the requested targets back, so that adapter_config.json is that of a single adapter."""
    targets = config.target_modules
    # PEFT itself replaces `all-linear` and long lists by what they match
    if targets != "all-linear" and (isinstance(targets, str) or len(targets) < MIN_TARGET_MODULES_FOR_OPTIMIZATION):
        attached.target_modules = targets
    attached.exclude_modules, attached.layers_to_transform = config.exclude_modules, config.layers_to_transform
