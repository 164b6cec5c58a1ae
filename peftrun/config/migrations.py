"""Upgrade configs of earlier versions: renamed keys and options, and values of keys added since. Light.

A change that renames or adds a key adds a line here; then old commands, team files and old runs keep working. Typed overrides are
renamed by `old_overrides`, files of teams by `search_path.old_files`, a run's values by `upgrade_values`.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf._utils import split_key

# Old full key → (new full key, version of the change). `*` is any one name; parents have their new names and come first.
RENAMED: dict[str, tuple[str, str]] = {}
# Old full key of RENAMED → its old values → the new ones.
RENAMED_VALUES: dict[str, dict[Any, Any]] = {}
# (group, old option) → (new option, version of the change).
RENAMED_OPTIONS: dict[tuple[str, str], tuple[str, str]] = {}

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
# An interpolation.
REFERENCE = re.compile(r"(?P<start>(?<!\\)\$\{\s*(?:oc\.select:\s*)?)(?P<dots>\.*)(?P<key>[\w.\[\]-]+)(?=\s*[},])")


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
        owner, _, last = key.rpartition(".")
        mapping = _find_mapping(upgraded, owner)
        if mapping is not None and last not in mapping:
            mapping[last] = copy.deepcopy(value)
            text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            added.append(f"{key}={text}")
    if added:
        lines.append(f"keys added since that version were set to the earlier behavior: {', '.join(added)}")
    return upgraded, lines


def rename_keys(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Nested values with renamed keys replaced, and a line for each. A value under the new name wins over one under the old."""
    renamed, lines = copy.deepcopy(values), []
    for old, (new, _) in RENAMED.items():
        for names in list(_find_keys(renamed, old.split("."))):
            owner, _, last = _fill_pattern(new, names).rpartition(".")
            source = _find_mapping(renamed, ".".join(names[:-1]))
            assert source is not None
            value = rename_value(old, source.pop(names[-1]))
            target = _find_mapping(renamed, owner, create=True)
            if target is not None:
                target.setdefault(last, value)
            lines.append(format_renamed_key(old))
    return renamed, list(dict.fromkeys(lines))


def restore_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values under the names that their keys had first; the inverse of `rename_keys`."""
    restored = copy.deepcopy(values)
    for old, (new, _) in reversed(RENAMED.items()):
        first_values = {after: before for before, after in RENAMED_VALUES.get(old, {}).items()}
        for names in list(_find_keys(restored, new.split("."))):
            owner, _, last = _fill_pattern(old, names).rpartition(".")
            source, target = _find_mapping(restored, ".".join(names[:-1])), _find_mapping(restored, owner, create=True)
            assert source is not None and target is not None
            value = source.pop(names[-1])
            target[last] = first_values.get(value, value) if first_values else value
    return restored


def rename_key(key: str) -> tuple[str, list[str]]:
    """Today's name of a full key, which may be below a renamed one, and the old full keys of RENAMED that it has."""
    names, found = key.split("."), []
    for old, (new, _) in RENAMED.items():
        pattern = old.split(".")
        if len(pattern) <= len(names) and all(part in ("*", name) for part, name in zip(pattern, names, strict=False)):
            names = [*_fill_pattern(new, names).split("."), *names[len(pattern) :]]
            found.append(old)
    return ".".join(names), found


def rename_value(old: str, value: Any) -> Any:
    """What the value of the old key is under the new one."""
    values = RENAMED_VALUES.get(old, {})
    return values[value] if isinstance(value, str | bool | int | None) and value in values else value


def rename_option(group: str, option: str) -> str:
    """Today's name of an option."""
    return RENAMED_OPTIONS.get((group, option), (option, ""))[0]


def rename_references(text: str, owner: str = "") -> tuple[str, list[str]]:
    """`text` with today's keys in its interpolations, and a line for each. `owner`: the mapping that relative ones start from."""
    lines: list[str] = []

    def replace(match: re.Match[str]) -> str:
        levels = len(match["dots"])
        base = owner.split(".")[: len(owner.split(".")) - levels + 1] if levels and owner else []
        new, found = rename_key(".".join([*base, *split_key(match["key"])]))
        lines.extend(map(format_renamed_key, found))
        return f"{match['start']}{new}" if found else match[0]

    return REFERENCE.sub(replace, text) if "${" in text and RENAMED else text, lines


def list_old_keys(key: str) -> list[str]:
    """The earlier names of a full key."""
    return [old for old in RENAMED if old.count(".") == key.count(".") and rename_key(old.replace("*", "_"))[0] == key]


def format_renamed_key(old: str) -> str:
    """The line for an old key that was replaced."""
    new, version = RENAMED[old]
    return f"{old} is called {new} since {version}; carried over"


def format_renamed_option(group: str, option: str) -> str:
    """The line for an old option that was replaced."""
    new, version = RENAMED_OPTIONS[group, option]
    return f"{group}={option} is called {group}={new} since {version}; carried over"


def _fill_pattern(new: str, names: Sequence[str]) -> str:
    """The new key with each `*` replaced by the name at its place."""
    return ".".join(names[place] if part == "*" else part for place, part in enumerate(new.split(".")))


def _find_keys(values: Any, pattern: Sequence[str]) -> Iterator[list[str]]:
    """The names of every key of the nested values that the pattern matches."""
    first, *others = pattern
    for name in list(values) if isinstance(values, dict) and first == "*" else [first]:
        if isinstance(values, dict) and name in values:
            yield from ([name, *rest] for rest in _find_keys(values[name], others)) if others else [[name]]


def _find_mapping(values: dict[str, Any], key: str, create: bool = False) -> dict[str, Any] | None:
    """The mapping under a full key ("": all values); None if there is none. `create`: missing ones are added."""
    node: Any = values
    for name in key.split(".") if key else ():
        if create and isinstance(node, dict):
            node.setdefault(name, {})
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
