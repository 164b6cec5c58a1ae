"""Upgrade configs of earlier versions: renamed keys, and values of keys added since. Light.

A change that renames or adds a key adds a line here; then old commands, team files and old runs keep working.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

from peftrun.formatting import format_value

RENAMED: dict[str, tuple[str, str]] = {}  # old full key → (new full key, version of the change); none so far

# Key → the value that means what runs did before the key existed.
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
# The same for keys of some options only: (key, its value in those options) → added keys.
ADDED_TO: dict[tuple[str, str], dict[str, Any]] = {
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
    """A run's resolved values in today's keys, with a line for each renamed key and one for all added keys.

    An added key gets the value that means what runs did before it existed.
    """
    upgraded, lines = rename_keys(values)
    defaults = dict(ADDED)
    for (key, option), added_keys in ADDED_TO.items():
        owner, _, last = key.rpartition(".")
        if (_find_mapping(upgraded, owner) or {}).get(last) == option:
            defaults |= added_keys
    added = []
    for key, value in defaults.items():
        if _set_value(upgraded, key, copy.deepcopy(value), replace=False):
            added.append(f"{key}={format_value(value)}")
    if added:
        lines.append(f"keys added since that version were set to the earlier behavior: {', '.join(added)}")
    return upgraded, lines


def rename_keys(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Nested values with renamed keys replaced, and a line for each."""
    renamed, lines = copy.deepcopy(values), []
    for old, (new, version) in RENAMED.items():
        owner, _, last = old.rpartition(".")
        mapping = _find_mapping(renamed, owner)
        if mapping is not None and last in mapping:
            _set_value(renamed, new, mapping.pop(last), replace=True)
            lines.append(_format_rename(old, new, version))
    return renamed, lines


def rename_overrides(typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Typed overrides with renamed keys replaced, and a line for each such key."""
    overrides: list[str] = []
    lines: dict[str, None] = {}  # without duplicates, in order
    for text in typed:
        match = OVERRIDE.fullmatch(text)
        if match is None or match["key"] not in RENAMED:
            overrides.append(text)
            continue
        new, version = RENAMED[match["key"]]
        overrides.append(f"{match['sign']}{new}{match['rest'] or ''}")
        lines[_format_rename(match["key"], new, version)] = None
    return overrides, list(lines)


def _format_rename(old: str, new: str, version: str) -> str:
    return f"{old} is called {new} since {version}; carried over"


def _find_mapping(values: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The mapping under a full key ("": all values); None if there is none."""
    node: Any = values
    for name in key.split(".") if key else ():
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def _set_value(values: dict[str, Any], key: str, value: Any, replace: bool) -> bool:
    """Set a value if the mapping that it belongs to exists and, unless `replace`, lacks the key. Returns whether it was set."""
    owner, _, last = key.rpartition(".")
    mapping = _find_mapping(values, owner)
    if mapping is None or (last in mapping and not replace):
        return False
    mapping[last] = value
    return True
