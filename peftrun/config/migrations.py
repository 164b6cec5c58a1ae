"""Upgrade configs of earlier versions: renamed keys and options, and values of keys added since. Light.

A change that renames or adds a key adds a line here; then old commands, team files and old runs keep working. Typed overrides are
renamed by `old_overrides`, files of teams by `search_path.old_files`, a run's values by `upgrade_values`.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

from peftrun.compat.omegaconf import split_key
from peftrun.formatting import format_value

# Old full key → (new full key, version of the change). `*` is any one name; parents have their new names and come first.
RENAMED: dict[str, tuple[str, str]] = {
    "task.kind": ("task.type", "0.1.0"),
    "task.system": ("task.system_prompt", "0.1.0"),
    "task.messages": ("task.messages_column", "0.1.0"),
    "task.prompt": ("task.prompt_template", "0.1.0"),
    "task.completion": ("task.completion_template", "0.1.0"),
    "task.chosen": ("task.chosen_column", "0.1.0"),
    "task.rejected": ("task.rejected_column", "0.1.0"),
    "task.desirable": ("task.desirable_column", "0.1.0"),
    "task.words": ("task.tokens_column", "0.1.0"),
    "task.tags": ("task.tags_column", "0.1.0"),
    "task.data.name": ("task.data.config_name", "0.1.0"),
    "task.data.train_rows": ("task.data.num_train_rows", "0.1.0"),
    "task.data.eval_rows": ("task.data.num_test_rows", "0.1.0"),
    "task.data.validation_rows": ("task.data.num_validation_rows", "0.1.0"),
    "task.data.eval_path": ("task.data.test_path", "0.1.0"),
    "task.data.eval_split": ("task.data.test_split", "0.1.0"),
    "task.data.holdout": ("task.data.split_strategy", "0.1.0"),
    "task.data.mix": ("task.data.mixture", "0.1.0"),
    "task.data.mixture.*.prompt": ("task.data.mixture.*.prompt_template", "0.1.0"),
    "task.data.mixture.*.completion": ("task.data.mixture.*.completion_template", "0.1.0"),
    "task.data.mixture.*.name": ("task.data.mixture.*.config_name", "0.1.0"),
    "action.samples": ("action.num_samples", "0.1.0"),
    "action.measured_steps": ("action.measure_steps", "0.1.0"),
    "action.held_out_rows": ("action.num_eval_rows", "0.1.0"),
    "action.of": ("action.for_action", "0.1.0"),
    "action.against": ("action.compare_with", "0.1.0"),
    "action.tuned": ("action.finetuned_model", "0.1.0"),
    "action.env": ("action.check_only", "0.1.0"),
    "action.roots": ("action.dirs", "0.1.0"),
    "action.combination": ("action.combination_type", "0.1.0"),
    "device.name": ("device.type", "0.1.0"),
    "device.machines": ("device.num_machines", "0.1.0"),
    "device.processes": ("device.num_processes", "0.1.0"),
    "device.main_address": ("device.main_process_ip", "0.1.0"),
    "device.main_port": ("device.main_process_port", "0.1.0"),
    "active": ("active_adapter", "0.1.0"),
    "slots": ("params", "0.1.0"),
    "template.slots": ("template.params", "0.1.0"),
}
# Old full key of RENAMED → its old values → the new ones.
RENAMED_VALUES: dict[str, dict[Any, Any]] = {"action.env": {"check": True, None: False}}
# (group, old option) → (new option, version of the change).
RENAMED_OPTIONS: dict[tuple[str, str], tuple[str, str]] = {
    ("lora", "by_pattern"): ("lora_rank_pattern", "0.1.0"),
    ("lora", "tokens"): ("lora_trainable_tokens", "0.1.0"),
    ("lora", "experts"): ("lora_moe", "0.1.0"),
    ("task", "encyclopedia"): ("wiki_text", "0.1.0"),
    ("task", "summaries"): ("summarization", "0.1.0"),
    ("task", "text"): ("plain_text", "0.1.0"),
    ("experiment", "summaries"): ("summarization", "0.1.0"),
    ("experiment", "text"): ("plain_text", "0.1.0"),
}

# Key → the value that means what runs did before the key existed.
ADDED: dict[str, Any] = {
    "model.quantization": None,
    "model.chat_template": None,
    "model.special_tokens": None,
    "model.new_tokens": None,
    "model.pad_vocab_to_multiple_of": None,
    "model.arguments": None,
    "task.label_names": None,
    "task.tokens_column": None,
    "task.tags_column": None,
    "task.chosen_column": None,
    "task.rejected_column": None,
    "task.desirable_column": None,
    "task.tools": None,
    "task.template_arguments": None,
    "task.special_tokens_in_text": "keep",
    "task.lm_eval": None,
    "task.objective": None,
    "task.loss_on": "completion",
    "task.metrics": None,
    "task.max_new_tokens": 64,
    "task.data.adapter_column": None,
    "task.data.num_validation_rows": None,
    "task.data.group_column": None,
    "task.data.mixture": None,
    "task.data.config_name": None,
    "task.data.test_split": None,
    "task.data.streaming": False,
    "task.data.split_strategy": "random",
    "task.data.cache": False,
    "trainer.activation_offloading": False,
    "trainer.torch_compile": False,
    "trainer.use_liger_kernel": False,
    "trainer.eval_strategy": "no",
    "trainer.eval_steps": 20,
    "trainer.load_best_model_at_end": False,
    "trainer.metric_for_best_model": "loss",
    "trainer.greater_is_better": None,
    "trainer.early_stopping_patience": None,
    "trainer.padding_free": False,
    "trainer.push_to_hub": False,
    "trainer.hub_model_id": None,
    "trainer.hub_strategy": "every_save",
    "trainer.hub_private_repo": True,
    "trainer.lr_scheduler_kwargs": None,
    "trainer.adam_epsilon": 1e-8,
    "trainer.arguments": None,
    "device.strategy": None,
    "device.num_processes": 1,
    "device.num_machines": 1,
    "device.machine_rank": 0,
    "device.main_process_ip": None,
    "device.main_process_port": 29500,
    "device.deepspeed_config": None,
    "device.memory_check": False,
    "device.max_memory": None,
    "device.deterministic": False,
    "device.tf32": False,
    "tracker": {"name": "none"},
    "params": {},
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
    ("task.objective.name", "dpo"): {"task.objective.reference": None},
    ("task.objective.name", "kto"): {"task.objective.reference": None},
    ("task.objective.name", "grpo"): {"task.objective.reference": None},
    ("action.name", "merge"): {"action.num_eval_rows": 0},
    ("action.name", "generate"): {"action.batch_size": 1},
    ("action.name", "train"): {"action.num_samples": 0, "action.stack": False, "action.upload_to": None},
    ("action.name", "plan"): {
        "action.measure_steps": 0,
        "action.num_samples": 0,
        "action.stack": False,
        "action.upload_to": None,
    },
}
# An interpolation.
REFERENCE = re.compile(r"(?P<start>(?<!\\)\$\{\s*(?:oc\.select:\s*)?)(?P<dots>\.*)(?P<key>[\w.\[\]-]+)(?=\s*[},])")


def upgrade_values(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A run's resolved values in today's keys, with a line for all renamed keys and one for all added keys.

    An added key gets the value that means what runs did before it existed.
    """
    upgraded, old_keys = _rename_nested(values)
    names = ", ".join(f"{old} is {RENAMED[old][0]}" for old in old_keys)
    lines = [f"keys that were renamed since that version: {names}"] if names else []
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
            added.append(f"{key}={format_value(value)}")
    if added:
        lines.append(f"keys added since that version were set to the earlier behavior: {', '.join(added)}")
    return upgraded, lines


def get_earlier_default(key: str, values: dict[str, Any]) -> Any:
    """What `upgrade_values` sets a missing key to. `values`: full key → value. None: nothing, or the group has no such keys."""
    chosen = [added for (name, option), added in ADDED_TO.items() if values.get(name) == option and key in added]
    owner = key.rpartition(".")[0]
    return next(iter([*chosen, ADDED])).get(key) if any(name.startswith(f"{owner}.") for name in values) else None


def rename_keys(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Nested values with renamed keys replaced, and a line for each. A value under the new name wins over one under the old."""
    renamed, old_keys = _rename_nested(values)
    return renamed, list(map(format_renamed_key, old_keys))


def _rename_nested(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Nested values with renamed keys replaced, and the keys of RENAMED that were found."""
    renamed, old_keys = copy.deepcopy(values), []
    for old, (new, _) in RENAMED.items():
        for names in list(_find_keys(renamed, old.split("."))):
            _move_key(renamed, names, _fill_pattern(new, names), RENAMED_VALUES.get(old, {}))
            old_keys.append(old)
    return renamed, list(dict.fromkeys(old_keys))


def restore_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values under the names that their keys had first; the inverse of `rename_keys`."""
    restored = copy.deepcopy(values)
    for old, (new, _) in reversed(RENAMED.items()):
        first_values = {after: before for before, after in RENAMED_VALUES.get(old, {}).items()}
        for names in list(_find_keys(restored, new.split("."))):
            _move_key(restored, names, _fill_pattern(old, names), first_values)
    return restored


def _move_key(values: dict[str, Any], names: Sequence[str], new: str, new_values: dict[Any, Any]) -> None:
    """Give a key of the nested values another full key, in the same place if its mapping stays the same, unless that key is set."""
    owner, _, last = new.rpartition(".")
    source, target = _find_mapping(values, ".".join(names[:-1])), _find_mapping(values, owner, create=True)
    assert source is not None
    value = source[names[-1]]
    value = new_values[value] if new_values and value in new_values else value
    if source is target and last not in source:
        items = list(source.items())
        source.clear()
        source.update((last, value) if key == names[-1] else (key, item) for key, item in items)
        return
    del source[names[-1]]
    if target is not None:
        target.setdefault(last, value)


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
    values = RENAMED_VALUES.get(old)
    return values[value] if values and value in values else value


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
