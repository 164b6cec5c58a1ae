"""Keys whose meaning depends on other keys, and the order in which all are translated. Light."""

import math
from collections.abc import Iterator
from typing import Any

from peftrun.config import paths
from peftrun.config.peers import tables
from peftrun.config.schema import peft_fields
from peftrun.config_tools.peer_import import row_keys
from peftrun.config_tools.peer_import.translation import (
    NOT_NEEDED,
    Converter,
    PeerConfig,
    Translation,
    carry,
    leave_out,
    parse_overrides,
    skip,
    split_list,
    translate_by_row,
)

SHARE = "task.data.num_validation_rows"
EPOCH_SHARES = "trainer.eval_steps"
FIRST = (
    ("command", "stage", "rl", "rlhf_type"),
    ("dataset", "datasets", "dataset_name", "dataset_mixer", "dataset_mixture", "pretraining_dataset"),
    ("columns",),
)
TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")
UNKNOWN = "this table has no such key; look it up in the tool's documentation"
SHELL_VARIABLE = "its value is set by the shell; set the key by hand"
RUN_DIR = "each run has its own folder, outputs/train/RUN; for one run type hydra.run.dir={}"
PREFERENCE_WORDS = ("orpo", "kto", "reward", "grpo", "dpo")
PREFERENCE_KEYS = ("beta", "loss_type", "max_prompt_length", "precompute_ref_log_probs", "rpo_alpha", "truncation_mode")
LEARNING_RATES = {"sft": 2e-5, "reward": 1e-4}  # TRL's; of all others 1e-6


def translate_config(config: PeerConfig) -> list[Translation]:
    """What becomes of each key, in the order of the file."""
    rows = tables.read_table(config.tool).rows
    lines: list[Translation] = []
    for key, value in config.keys.items():
        row = rows.get(key)
        if any("$" in part for part in split_list(value) if isinstance(part, str)) and config.command:
            lines += leave_out(key, value, SHELL_VARIABLE)
        elif converter := CONVERTERS.get((config.tool, key)) or CONVERTERS.get(("", key)):
            lines += converter(config, key, value)
        elif row:
            lines += translate_by_row(row, key, value)
        elif config.tool == "peft" and "." not in key:
            lines += _translate_peft_field(config, key, value)
        else:
            lines += leave_out(key, value, UNKNOWN)
    return sorted(lines, key=_rank_line)


def _rank_line(line: Translation) -> tuple[int, bool]:
    """Of two keys for one setting the later counts: rows say more than the kind of training, and other keys more than both.

    Among these the one that switches something on: fp16=true and bf16=false.
    """
    owner = line.key.partition(".")[0]
    rank = next((rank for rank, names in enumerate(FIRST) if owner in names), len(FIRST))
    return rank, line.value is not False


def find_defaults(config: PeerConfig) -> Iterator[Translation]:
    """What the tool does where a key is missing, if peftrun does otherwise."""
    for row in tables.read_table(config.tool).left_out:
        if row.key not in config.keys:
            changed = DEFAULTS.get((config.tool, row.key))
            settings = changed(config) if changed else dict(parse_overrides(row.to))
            yield Translation(row.key, next(iter(settings.values()), row.default), NOT_NEEDED, settings)
    if config.tool == "axolotl" and "adapter" not in config.keys:
        yield Translation("adapter", "none", NOT_NEEDED, {"lora": "none"})
    yield Translation("datasets", "", NOT_NEEDED, {"task": "instruction"})
    yield Translation("whole epochs", "", NOT_NEEDED, {"trainer": "epochs"})


def _translate_validation(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """A number of validation rows, or a share, which `consistency.settle` turns into a number."""
    if not value:
        return skip(key, value, "no row is set aside")
    often = config.keys.get("evals_per_epoch")
    evaluates = config.tool == "axolotl" and often != 1 and "eval_strategy" not in config.keys
    return carry(key, value, {SHARE: value} | ({"trainer.eval_strategy": "steps"} if evaluates else {}))


def _translate_evals_per_epoch(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    if not value:
        return skip(key, value)
    each = {"trainer.eval_strategy": "epoch"}
    return carry(key, value, each if value == 1 else {"trainer.eval_strategy": "steps", EPOCH_SHARES: value})


def _translate_fsdp(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    return carry(key, value, {"device": "fsdp"}, "offloading and wrapping cannot be set")


def _translate_trackers(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    names = split_list(value)
    known = [name for name in names if name in TRACKERS]
    if not known:
        return skip(key, value) if names == ["none"] else leave_out(key, value, f"type tracker=NAME, one of {', '.join(TRACKERS)}")  # fmt: skip
    others = [name for name in names if name != known[-1]]
    return carry(key, value, {"tracker": known[-1]}) + (leave_out(key, others, "a run has one tracker") if others else [])  # fmt: skip


def _translate_output_dir(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    return skip(key, value, RUN_DIR.format(value))


def _translate_loss_type(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    if config.command == "grpo" or config.keys.get("rlhf_type") in ("kto", "grpo"):
        return carry(key, value, {"task.objective.loss_type": value})
    return carry(key, value, {"task.objective.loss_type": split_list(value)})


def _translate_swift_bits(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    quantization = {4: config.keys.get("bnb_4bit_quant_type", "nf4"), 8: "int8"}.get(value)
    if config.keys.get("quant_method", "bnb") == "bnb" and quantization:
        return carry(key, value, {"model.quantization": quantization})
    return leave_out(key, value, tables.read_table(config.tool).rows[key].by_hand)


def _translate_swift_modules(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    names = split_list(value)
    if "all-linear" not in names:
        return carry(key, value, {"lora.target_modules": names})
    lines = carry(key, "all-linear", {"lora.target_modules": "all-linear"})
    others = [name for name in names if name != "all-linear"]
    return lines + (leave_out(key, others, "train them wholly: lora.modules_to_save=[…]") if others else [])


def _translate_deepspeed(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    if isinstance(value, str) and value.endswith(".json"):
        return carry(key, value, {"device": "deepspeed", "device.deepspeed_config": value})
    return leave_out(
        key, value, "write its JSON into a file, and type device=deepspeed device.deepspeed_config=FILE; or device=fsdp"
    )


def _translate_processes(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    has_own = "fsdp" in config.keys or str(config.keys.get("deepspeed", "")).endswith(".json")
    own = {} if has_own else {"device": "ddp"}
    return carry(key, value, {**own, "device.num_processes": value}) if value != 1 else skip(key, value)


def _translate_pref_loss(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    return (
        carry(key, value, {"task": "orpo"})
        if value == "orpo"
        else carry(key, value, {"task.objective.loss_type": [value]})
    )


def _translate_packing(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    note = "" if config.tool != "llama-factory" or not value else "packed texts attend to each other there, not here"
    return carry(key, value, {"trainer.packing": value}, note)


def _translate_peft_type(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    method = str(value).lower()
    if method in paths.list_group_options("lora"):
        return carry(key, value, {"lora": method})
    return leave_out(key, value, f"there is no such method; methods: {', '.join(paths.list_group_options('lora'))}")


def _translate_special_tokens(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    tokens = {name.removesuffix("_token"): token for name, token in value.items() if name.endswith("_token")}
    others = {name: token for name, token in value.items() if not name.endswith("_token")}
    lines = carry(key, value, {"model.special_tokens": tokens}) if tokens else []
    return lines + (leave_out(key, others, "type model.new_tokens=[…] for tokens that the model lacks") if others else [])  # fmt: skip


def _translate_peft_field(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    reason = peft_fields.explain_unsupported(str(config.keys.get("peft_type", "")).lower(), key)
    return skip(key, value, reason) if reason else carry(key, value, {f"lora.{key}": value})


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "output_dir"): _translate_output_dir,
    ("", "loss_type"): _translate_loss_type,
    ("", "report_to"): _translate_trackers,
    ("", "deepspeed"): _translate_deepspeed,
    ("", "NPROC_PER_NODE"): _translate_processes,
    ("", "packing"): _translate_packing,
    ("", "fsdp"): _translate_fsdp,
    ("", "fsdp_config"): _translate_fsdp,
    ("axolotl", "datasets"): row_keys.translate_axolotl_sources,
    ("axolotl", "pretraining_dataset"): row_keys.translate_pretraining_sources,
    ("axolotl", "test_datasets"): row_keys.translate_test_sources,
    ("axolotl", "special_tokens"): _translate_special_tokens,
    ("axolotl", "val_set_size"): _translate_validation,
    ("axolotl", "evals_per_epoch"): _translate_evals_per_epoch,
    ("llama-factory", "dataset"): row_keys.translate_named_sources,
    ("llama-factory", "val_size"): _translate_validation,
    ("llama-factory", "pref_loss"): _translate_pref_loss,
    ("trl", "dataset_name"): row_keys.translate_hub_or_file,
    ("trl", "dataset_mixer"): row_keys.translate_mixer,
    ("trl", "dataset_mixture"): row_keys.translate_mixture,
    ("trl", "dataset_splits"): row_keys.translate_splits,
    ("trl", "dataset_configs"): row_keys.translate_config_names,
    ("ms-swift", "dataset"): row_keys.translate_swift_sources,
    ("ms-swift", "val_dataset"): row_keys.translate_test_file,
    ("ms-swift", "split_dataset_ratio"): _translate_validation,
    ("ms-swift", "quant_bits"): _translate_swift_bits,
    ("ms-swift", "target_modules"): _translate_swift_modules,
    ("peft", "peft_type"): _translate_peft_type,
}


def name_training(config: PeerConfig) -> str:
    """TRL's command, which its YAML does not name: by the file's folders, or that of supervised training without keys of preferences."""
    words = [
        word
        for part in reversed(config.path.absolute().parts[-3:])
        for word in part.replace(".", "_").replace("-", "_").split("_")
    ]
    named = next((word for word in words if word in (*PREFERENCE_WORDS, "sft")), "")
    return named or ("dpo" if {*PREFERENCE_KEYS} & {*config.keys} else "sft")


def _default_alpha(config: PeerConfig) -> dict[str, Any]:
    return {"lora.lora_alpha": 2 * config.keys.get("lora_rank", 8)}


def _default_rate(config: PeerConfig) -> dict[str, Any]:
    return {"trainer.learning_rate": LEARNING_RATES.get(config.command, 1e-6)}


def _default_swift_rate(config: PeerConfig) -> dict[str, Any]:
    full = "full" in (config.keys.get("tuner_type"), config.keys.get("train_type"))
    return {"trainer.learning_rate": 1e-5 if full else 1e-4}


def _default_swift_accumulation(config: PeerConfig) -> dict[str, Any]:
    batch, processes = config.keys.get("per_device_train_batch_size", 1), config.keys.get("NPROC_PER_NODE", 1)
    return {"trainer.gradient_accumulation_steps": max(1, math.ceil(16 / batch / processes))}


DEFAULTS = {
    ("llama-factory", "lora_alpha"): _default_alpha,
    ("trl", "learning_rate"): _default_rate,
    ("ms-swift", "learning_rate"): _default_swift_rate,
    ("ms-swift", "gradient_accumulation_steps"): _default_swift_accumulation,
}
