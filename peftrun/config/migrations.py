"""Keys that other versions knew otherwise: what a config of an earlier one means today. Light.

A key that is renamed or added gets a line here in the same change; then old commands, a team's files and old runs go on working.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

RENAMED: dict[str, tuple[str, str]] = {}  # full key → what it is called, and the version since which it is; none so far

# What a run did before the key was there.
ADDED: dict[str, Any] = {
    "model.quantization": None,
    "task.label_names": None,
    "task.words": None,
    "task.tags": None,
    "task.chosen": None,
    "task.rejected": None,
    "task.desirable": None,
    "task.tools": None,
    "task.template_arguments": None,
    "task.special_tokens_in_text": "keep",
    "task.lm_eval": None,
    "task.objective": None,
    "task.loss_on": "completion",
    "task.metrics": None,
    "task.max_new_tokens": 64,
    "task.data.adapter_column": None,
    "task.data.validation_rows": None,
    "task.data.group_column": None,
    "task.data.mix": None,
    "task.data.name": None,
    "task.data.eval_split": None,
    "task.data.streaming": False,
    "task.data.holdout": "random",
    "task.data.cache": False,
    "trainer.activation_offloading": False,
    "trainer.torch_compile": False,
    "trainer.use_liger_kernel": False,
    "trainer.eval_strategy": "no",
    "trainer.eval_steps": 20,
    "trainer.load_best_model_at_end": False,
    "trainer.early_stopping_patience": None,
    "trainer.padding_free": False,
    "trainer.lr_scheduler_kwargs": None,
    "trainer.adam_epsilon": 1e-8,
    "device.strategy": None,
    "device.processes": 1,
    "device.machines": 1,
    "device.machine_rank": 0,
    "device.main_address": None,
    "device.main_port": 29500,
    "device.deepspeed_config": None,
    "device.memory_check": False,
    "device.max_memory": None,
    "device.deterministic": False,
    "tracker": {"name": "none"},
    "slots": {},
    "template": None,
}
ADDED_TO: dict[tuple[str, str], dict[str, Any]] = {  # to the options whose key says so
    ("lora.method", "lora"): {
        "lora.lora_bias": False,
        "lora.target_parameters": None,
        "lora.trainable_token_indices": None,
        "lora.alora_invocation_tokens": None,
        "lora.eva_config": None,
        "lora.corda_config": None,
        "lora.lora_ga_config": None,
        "lora.velora_config": None,
        "lora.use_bdlora": None,
        "lora.calibration_rows": 64,
        "lora.loraplus_lr_ratio": None,
        "lora.lora_fa": False,
    },
    ("action.name", "merge"): {"action.held_out_rows": 0},
    ("action.name", "generate"): {"action.batch_size": 1},
    ("action.name", "train"): {"action.samples": 0},
    ("action.name", "plan"): {"action.measured_steps": 0, "action.samples": 0},
}
OVERRIDE = re.compile(r"(?P<sign>[+~]*)(?P<key>[\w.]+)(?P<rest>=.*)?", re.DOTALL)


def upgrade_values(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A whole run's resolved values in today's keys, with a line for each that is renamed and one for those that were not known then.

    An added key gets the value that means what was done before it was there.
    """
    found, lines = rename_keys(values)
    added = [
        (key, value)
        for key, value in _list_added_keys(found)
        if _set_value(found, key, copy.deepcopy(value), over=False)
    ]
    if added:
        named = ", ".join(f"{key}={_format_value(value)}" for key, value in added)
        lines.append(f"keys that came later stand for what was done without them: {named}")
    return found, lines


def rename_keys(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Nested values with old names of keys replaced, and a line for each."""
    found, lines = copy.deepcopy(values), []
    for old, (new, version) in RENAMED.items():
        owner, _, last = old.rpartition(".")
        holder = _find_mapping(found, owner)
        if holder is not None and last in holder:
            _set_value(found, new, holder.pop(last), over=True)
            lines.append(_format_rename(old, new, version))
    return found, lines


def rename_overrides(typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides as typed with old names of keys replaced, and a line for each."""
    names = {found["key"]: text for text in typed if (found := OVERRIDE.fullmatch(text)) and found["key"] in RENAMED}
    lines = [_format_rename(old, *RENAMED[old]) for old in names]
    return [_rename_override(text) for text in typed], lines


def _rename_override(text: str) -> str:
    found = OVERRIDE.fullmatch(text)
    if found is None or found["key"] not in RENAMED:
        return text
    return f"{found['sign']}{RENAMED[found['key']][0]}{found['rest'] or ''}"


def _format_rename(old: str, new: str, version: str) -> str:
    return f"{old} is called {new} since {version}; carried over"


def _list_added_keys(values: dict[str, Any]) -> list[tuple[str, Any]]:
    chosen = [keys for (where, option), keys in ADDED_TO.items() if _get_value(values, where) == option]
    return [item for keys in (ADDED, *chosen) for item in keys.items()]


def _find_mapping(values: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The mapping under a key; None where there is none."""
    found: Any = values
    for part in key.split(".") if key else ():
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _get_value(values: dict[str, Any], key: str) -> Any:
    owner, _, last = key.rpartition(".")
    return (_find_mapping(values, owner) or {}).get(last)


def _set_value(values: dict[str, Any], key: str, value: Any, over: bool) -> bool:
    """Whether the value was put there: its mapping is there, and so far it does not hold the key, or `over`."""
    owner, _, last = key.rpartition(".")
    holder = _find_mapping(values, owner)
    if holder is None or (last in holder and not over):
        return False
    holder[last] = value
    return True


def _format_value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
