"""Which cells can be trained together on one base model, and why the others cannot. Light."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peftrun.artifacts import classifier_head
from peftrun.config.schema import peft_fields
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.lora import LoraSpec
from peftrun.config.schema.method_traits import PLAIN_INITS
from peftrun.config.schema.optimizers import OPTIMIZERS
from peftrun.config.schema.quantization_formats import FORMATS
from peftrun.config.schema.run import RunSpec
from peftrun.config.schema.trainer_fields import ON_SHARED_BASE
from peftrun.formatting import format_value
from peftrun.sweep.cells import Cell

KINDS = ("causal_lm", "seq_cls", "token_cls", "seq2seq")
# Key → the value that it must have. Any other value changes the forward pass in a way that differs between adapters.
LORA: dict[str, Any] = {
    "use_dora": False, "bias": "none", "lora_bias": False, "modules_to_save": None, "target_parameters": None,
    "trainable_token_indices": None, "alora_invocation_tokens": None, "eva_config": None, "corda_config": None,
    "lora_ga_config": None, "velora_config": None, "use_bdlora": None, "lora_fa": False, "loraplus_lr_ratio": None,
}  # fmt: skip
TRAINER: dict[str, Any] = {
    "packing": False, "padding_free": False, "torch_compile": False, "activation_offloading": False,
    "gradient_checkpointing": False, "label_smoothing_factor": 0, "neftune_noise_alpha": None,
}  # fmt: skip
DEVICE: dict[str, Any] = {"strategy": None, "max_memory": None}
ONE_BY_ONE = (
    "cells are trained one after another; hydra/launcher=shared_base trains those together that share a base model"
)
ELSEWHERE = "the cells that share its base model are on other devices"
ONLY_ONE = "no other cell shares its base model, device and task type"
# Formats that round a row by what all rows of a batch hold, so that cells would change each other.
ROUNDS_INPUTS = [name for name, chosen in FORMATS.items() if chosen.rounds_inputs]


@dataclass(frozen=True)
class Group:
    """Cells that are trained together. `reason`: why a cell runs alone; empty where there are several. `device`: planned; empty: this process."""

    cells: list[Cell]
    reason: str = ""
    device: str = ""


def group_cells(cells: Sequence[Cell], together: bool = True) -> list[Group]:
    """The groups of cells that can be run, in the order of their first cells. `together`: whether any are trained together."""
    shared: dict[str, list[Cell]] = {}
    groups: list[Group] = []
    for cell in cells:
        if cell.spec is None:
            continue
        reason = explain_alone(cell.spec) if together else ONE_BY_ONE
        if reason:
            groups.append(Group([cell], reason))
            continue
        # A group shares one base model, device, task type and set of labels.
        head = classifier_head.get_task_head(cell.spec.task)
        parts = [dataclasses.asdict(cell.spec.model), dataclasses.asdict(cell.spec.device), cell.spec.task.type]
        key = json.dumps([*parts, dataclasses.asdict(head) if head else None], sort_keys=True)
        members = shared.setdefault(key, [])
        if not members:
            groups.append(Group(members))
        members.append(cell)
    return [Group(group.cells, group.reason or (ONLY_ONE if len(group.cells) == 1 else "")) for group in groups]


def explain_alone(spec: RunSpec) -> str:
    """Why a run cannot be trained together with others, such as `lora.use_dora=true`; empty if it can."""
    return next(_iter_reasons(spec), "")


def _iter_reasons(spec: RunSpec) -> Iterator[str]:
    if not isinstance(spec.action, TrainAction):
        yield f"action={spec.action.name}"
        return
    if spec.action.stack:
        yield "action.stack=true"
    if spec.action.resume is not None:
        yield f"action.resume={spec.action.resume}"
    if not isinstance(spec.lora, LoraSpec):
        yield f"lora.method={spec.lora.method}"
        return
    yield from (f"model.quantization={name}" for name in ROUNDS_INPUTS if name == spec.model.quantization)
    # The other initializations change the base model's weights, or need its activations or gradients.
    if spec.lora.init_lora_weights not in PLAIN_INITS:
        yield f"lora.init_lora_weights={spec.lora.init_lora_weights}"
    if spec.lora.target_modules is None:
        yield "lora.target_modules=null"
    yield from _iter_differing("lora", spec.lora, LORA | dict.fromkeys(peft_fields.get_extra_peft_fields(spec.lora)))
    if spec.task.objective is not None or spec.task.type not in KINDS:
        yield f"task.type={spec.task.type}"
    # null leaves the choice to the loop, and a joint run goes without
    liger = {} if spec.trainer.use_liger_kernel is None else {"use_liger_kernel": False}
    yield from _iter_differing("trainer", spec.trainer, TRAINER | liger)
    for key in (spec.trainer.arguments or {}).keys() - {*ON_SHARED_BASE}:
        yield f"trainer.arguments.{key}"
    if not OPTIMIZERS[spec.trainer.optim].stacks:
        yield f"trainer.optim={spec.trainer.optim}"
    # In float16 each cell would need a factor of the loss of its own.
    required = DEVICE | ({"dtype": "auto"} if spec.device.dtype == "float16" else {})
    yield from _iter_differing("device", spec.device, required)


def _iter_differing(group: str, values: Any, required: dict[str, Any]) -> Iterator[str]:
    """KEY=VALUE of each field of `values` (a config group) that is not as required, as it is typed."""
    for key, required_value in required.items():
        value = getattr(values, key)
        if value == required_value:
            continue
        yield f"{group}.{key}={type(value).__name__ if dataclasses.is_dataclass(value) else format_value(value)}"
