"""Which cells can be trained together on one base, and why the others cannot. Light."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peftrun.artifacts import classifier_head
from peftrun.config.schema import peft_fields
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.lora import LoraSpec
from peftrun.config.schema.run import RunSpec
from peftrun.sweep.cells import Cell

KINDS = ("causal_lm", "seq_cls", "token_cls", "seq2seq")
INITS = (True, False, "gaussian", "orthogonal")
# Key → the value that it must have; anything else shapes the forward pass in a way that differs between adapters.
LORA: dict[str, Any] = {
    "use_dora": False, "bias": "none", "lora_bias": False, "modules_to_save": None, "target_parameters": None,
    "trainable_token_indices": None, "alora_invocation_tokens": None, "eva_config": None, "corda_config": None,
    "lora_ga_config": None, "velora_config": None, "use_bdlora": None, "lora_fa": False, "loraplus_lr_ratio": None,
}  # fmt: skip
TRAINER: dict[str, Any] = {
    "packing": False, "padding_free": False, "torch_compile": False, "use_liger_kernel": False, "activation_offloading": False,
    "gradient_checkpointing": False, "label_smoothing_factor": 0, "neftune_noise_alpha": None,
}  # fmt: skip
OWN_MEMORY = (
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_32bit",
)  # bitsandbytes' optimisers want each tensor in memory of its own
DEVICE: dict[str, Any] = {"strategy": None, "max_memory": None}
ONE_BY_ONE = "cells are trained one after another; hydra/launcher=shared_base trains those together that share a base"
ONLY_ONE = "no other cell shares its base, device and kind of task"


@dataclass(frozen=True)
class Group:
    """Cells that are trained together. `reason`: why a cell stands alone; empty where there are several."""

    cells: list[Cell]
    reason: str = ""


def group_cells(cells: Sequence[Cell], together: bool = True) -> list[Group]:
    """The groups of cells that can be run, in the order of their first cells. `together`: whether any are trained together."""
    shared: dict[str, list[Cell]] = {}
    found: list[Group] = []
    for cell in cells:
        if cell.spec is None:
            continue
        reason = explain_alone(cell.spec) if together else ONE_BY_ONE
        if reason:
            found.append(Group([cell], reason))
            continue
        members = shared.setdefault(_compute_group_key(cell.spec), [])
        if not members:
            found.append(Group(members))
        members.append(cell)
    return [Group(one.cells, one.reason or (ONLY_ONE if len(one.cells) == 1 else "")) for one in found]


def explain_alone(spec: RunSpec) -> str:
    """Why a run cannot be trained together with any other; empty if it can."""
    return next(_iter_reasons(spec), "")


def _iter_reasons(spec: RunSpec) -> Iterator[str]:
    if not isinstance(spec.action, TrainAction):
        yield f"action={spec.action.name}"
        return
    if spec.action.resume is not None:
        yield f"action.resume={spec.action.resume}"
    if not isinstance(spec.lora, LoraSpec):
        yield f"lora.method={spec.lora.method}"
        return
    if spec.lora.init_lora_weights not in INITS:
        yield f"lora.init_lora_weights={spec.lora.init_lora_weights}"
    if spec.lora.target_modules is None:
        yield "lora.target_modules=null"
    yield from _iter_differing("lora", spec.lora, LORA | dict.fromkeys(peft_fields.get_extra_peft_fields(spec.lora)))
    if spec.task.objective is not None or spec.task.kind not in KINDS:
        yield f"task.kind={spec.task.kind}"
    yield from _iter_differing("trainer", spec.trainer, TRAINER)
    if spec.trainer.optim in OWN_MEMORY:
        yield f"trainer.optim={spec.trainer.optim}"
    yield from _iter_differing("device", spec.device, DEVICE)


def _iter_differing(group: str, part: Any, wanted: dict[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        if getattr(part, key) != value:
            yield f"{group}.{key}={_format_value(getattr(part, key))}"


def _format_value(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else type(value).__name__
        if dataclasses.is_dataclass(value)
        else str(value)
    )


def _compute_group_key(spec: RunSpec) -> str:
    """What all cells of a group have in common."""
    head = classifier_head.get_task_head(spec.task)
    parts = [dataclasses.asdict(spec.model), dataclasses.asdict(spec.device), spec.task.kind]
    return json.dumps([*parts, dataclasses.asdict(head) if head else None], sort_keys=True)
