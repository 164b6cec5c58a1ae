"""The reference model of a preference training, on the base model that is trained: never a second copy of it.

It is the base model with all adapters off, or the adapter that the training started from, which is held a second time, frozen, as adapter
FROZEN. TRL's trainers and our metrics ask for the reference by `disable_adapter`; within `use_reference` that gives either.

TRL itself would copy the adapter as it is when its trainer is made, but copies only tensors whose names go on after the adapter's: those of
many methods, and of adapted embeddings, would stay as they are drawn.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from peftrun import console
from peftrun.adapters import add, attach, load
from peftrun.artifacts import reference_adapter
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.errors import AdapterError
from peftrun.models.base import LoadedBase

PARENT, BASE = "parent", "base"  # values of task.objective.reference
FROZEN = "frozen_parent"  # name of the adapter that is held a second time


def choose_reference(objective: Any, has_parent: bool) -> str | None:
    """`parent` or `base`; None: this objective has no reference model."""
    if not hasattr(objective, "reference") or (isinstance(objective, GrpoObjective) and not objective.beta):
        return None
    return objective.reference or (PARENT if has_parent else BASE)


def add_parent(base: LoadedBase, net: Any, parent: AdapterRef) -> None:
    """Adds the saved adapter `parent` to the PEFT model `net`, frozen and inactive; checkpoints of `net` leave it out.

    Raises: AdapterError: PEFT cannot hold two adapters of its type. ProofError: it differs from its file.
    """
    frozen = replace(parent, name=FROZEN)
    add.add_adapter(base, base.model, net, frozen)
    load.check_tensors(net, frozen)
    freeze_parent(net)


def freeze_parent(net: Any) -> None:
    """Keeps adapter FROZEN from being trained, and from being saved with the one that is."""
    for name, parameter in net.named_parameters():
        if FROZEN in name.split("."):
            parameter.requires_grad_(False)
    net.save_pretrained = partial(net.save_pretrained, selected_adapters=[attach.ADAPTER_NAME])


@contextmanager
def use_reference(net: Any, reference: str | None) -> Iterator[None]:
    """Within the block, `net.disable_adapter()` gives the reference model: `parent` or `base`; None: whatever PEFT gives."""
    if reference is None or not hasattr(net, "disable_adapter"):
        yield
        return
    net.disable_adapter = partial(_compute_as_reference, net, net.disable_adapter, reference)
    try:
        yield
    finally:
        del net.disable_adapter


@contextmanager
def _compute_as_reference(net: Any, disable: Any, reference: str) -> Iterator[None]:
    # PEFT makes every weight of the adapters that it activates trainable, also those that a method keeps frozen
    trainable = {parameter: parameter.requires_grad for parameter in net.parameters()}
    active = list(net.active_adapters)
    try:
        if reference == PARENT:
            net.set_adapter(FROZEN, inference_mode=True)
            yield
        else:
            with disable():
                yield
    finally:
        activate(net, active)
        for parameter, value in trainable.items():
            parameter.requires_grad_(value)


def activate(net: Any, names: list[str]) -> None:
    """Makes these adapters active, of which PEFT's model names the first."""
    net.set_adapter(names[0])
    if len(names) > 1:
        net.base_model.set_adapter(names)


@contextmanager
def use_recorded_reference(
    base: LoadedBase, net: Any, adapter: AdapterRef | None, objective: Any
) -> Iterator[dict[str, Any]]:
    """`use_reference` with that of the adapter's training, unless the objective names another. Yields the entry for the record.

    If it was an adapter that is gone, the base model takes its place, with a warning.
    Raises: AdapterError: the objective names `parent`, and there is none.
    """
    chosen = choose_reference(objective, has_parent=True) if adapter else None
    if adapter is None or chosen is None:
        yield {}
        return
    parent = _find_parent(adapter, objective) if chosen == PARENT else None
    if parent:
        add_parent(base, net, parent)
    used = PARENT if parent else BASE
    with use_reference(net, used):
        yield reference_adapter.describe_reference(used, parent)


def _find_parent(adapter: AdapterRef, objective: Any) -> AdapterRef | None:
    try:
        parent = reference_adapter.find_reference(adapter)
    except AdapterError as error:
        if objective.reference == PARENT:
            raise
        console.print_warning(f"{error}; compared with the base model instead")
        return None
    if parent is None and objective.reference == PARENT:
        raise AdapterError(
            f"task.objective.reference=parent: {adapter.option} was not trained against an adapter; type task.objective.reference=base"
        )
    return parent
