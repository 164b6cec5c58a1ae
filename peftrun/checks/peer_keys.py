"""Keys of other tools → ours, for error messages: the tables of `config/peers`, and what is typed beside them. Light.

A key whose last part is the same here (`learning_rate`, `lora_dropout`) needs no entry: it is found by that part.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from peftrun.config import paths
from peftrun.config.peers import tables

VALUE, OTHERS = "VALUE", "others"
DEFAULT = ""  # nothing needs to be typed: the value is the default here
ROWS = "ROWS"  # a file or a dataset on the Hub: `translate_rows`
SPECIAL_TOKENS = "SPECIAL_TOKENS"  # role_token → token: `_translate_special_tokens`
VALIDATION = "VALIDATION"  # a number of rows, or a share of them: `_translate_validation`
EACH_EPOCH = "trainer.eval_strategy=epoch task.data.num_validation_rows=100"
RUNS = "outputs/train/RUN"
PEFTRUN_GROUPS = ("action", "tracker", "params", "hydra")  # groups that no other tool has
FILE = "a run is composed of options; type --config-dir FOLDER experiment=NAME for FOLDER/experiment/NAME.yaml, or action=import from=FILE for a config of another tool"
PEERS = ("axolotl", "llama-factory", "trl", "ms-swift")
NOT_TYPED = ("command", "columns", "top_p")  # rows that are no keys of theirs, or have several meanings here
UNLISTED = ("task.objective.", "lora.")  # keys that not every configuration has
COLUMNS = "datasets.field_"  # keys of axolotl's sources that are found without their owner
UNSET = ("null", "None", "~", "")
SOURCE = re.compile(r"""\A\[?(?:\{.*?path"?: *)?["']?([^"',}\]\s]+).*""", re.DOTALL)  # A of [{path: A, …}, …] or [A, …]
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt")

_MODEL = "model=pretrained model.name_or_path=VALUE"
_SWITCHES = {  # true: what to type; false: the default
    "use_lora": "lora=lora",
    "use_qlora": "experiment=qlora",
    "full_finetuning": "lora=none",
    "wandb": "tracker=wandb",
    "use_cpu": "device=cpu",
}
TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")
ADAPTERS = {  # axolotl's `adapter` is a method; here it is a trained adapter to load
    "lora": "lora=lora",
    "qlora": "lora=lora model.quantization=nf4",
    "none": "lora=none, which trains every weight",
}
_CASES: dict[str, dict[str, str]] = {  # key → value → what to type
    **{key: {"true": text, "false": DEFAULT} for key, text in _SWITCHES.items()},
    "bf16": {"true": "device.dtype=bfloat16", "auto": "device.dtype=auto", "full": "device.dtype=bfloat16"},
    "optimizer": {"adamw": "trainer.optim=adamw_torch", "adam": "trainer.optim=adamw_torch", "adamw_bnb_8bit": "trainer.optim=adamw_8bit", "adamw_torch_4bit": "trainer.optim=adamw_8bit", OTHERS: "trainer.optim=VALUE"},
    "use_gradient_checkpointing": {"false": DEFAULT, OTHERS: "trainer.gradient_checkpointing=true"},
    "evaluation_strategy": {
        "no": DEFAULT,
        "steps": "trainer.eval_strategy=steps task.data.num_validation_rows=100",
        "epoch": EACH_EPOCH,
    },
    "report_to": {"none": DEFAULT, **{name: f"tracker={name}" for name in TRACKERS}, OTHERS: f"tracker=NAME, one of {', '.join(TRACKERS)}"},
    "loftq_config": {"none": DEFAULT, "{}": DEFAULT, OTHERS: "lora=loftq model.quantization=nf4"},
    "adapter": ADAPTERS,
}  # fmt: skip
_SAME: dict[str, str] = {  # what to type → their names for it
    _MODEL: "model_name model_id model_path base pretrained pretrained_model_name_or_path model.name model.path model.id",
    **{f"'model.special_tokens={{{role}: \"VALUE\"}}'": f"{role}_token" for role in ("bos", "unk")},
    SPECIAL_TOKENS: "special_tokens",
    "lora.r=VALUE": "rank max_lora_rank",
    "lora.lora_alpha=VALUE": "alpha",
    "lora.lora_dropout=VALUE": "dropout",
    ROWS: "dataset datasets dataset_name dataset_path dataset_file data data_path data_file data_files train_file train_data train_dataset train_path",
    "task.data.path=VALUE": "file files",
    "task.data.test_path=VALUE": "eval_dataset eval_file validation_file test_file val_file",
    "task.data.num_train_rows=VALUE": "max_train_samples",
    VALIDATION: "val_set_size val_size",
    "task.max_length=VALUE": "max_seq_len max_len seq_len seq_length model_max_length block_size",
    "'task.system_prompt=\"VALUE\"'": "system_prompt default_system_message",
    "trainer.per_device_train_batch_size=VALUE": "batch_size train_batch_size per_device_batch_size",
    "trainer.gradient_accumulation_steps=VALUE": "gradient_accumulation grad_accum accumulation_steps",
    "trainer=epochs trainer.num_train_epochs=VALUE": "num_train_epochs num_epochs epochs max_epochs n_epochs",
    "trainer.max_steps=VALUE": "steps iters max_iters num_steps",
    "trainer.learning_rate=VALUE": "lr",
    "trainer.lr_scheduler_type=VALUE": "scheduler",
    "trainer.warmup_steps=VALUE": "warmup",
    "trainer.max_grad_norm=VALUE": "gradient_clip_val grad_clip",
    "trainer.use_liger_kernel=VALUE": "use_liger",
    EACH_EPOCH: "evals_per_epoch",
    "seed=VALUE": "random_state random_seed",
    "hydra.run.dir=VALUE": "out_dir save_dir run_dir",
    "action.resume=auto": "resume resume_from_checkpoint auto_resume_from_checkpoints",
    "tracker.run_name=VALUE": "run_name",
    "device=fsdp": "fsdp fsdp_config",
    "device.num_processes=VALUE": "num_gpus n_gpus gpus nproc_per_node num_processes",
    "task.objective.beta=VALUE": "beta",
    "task.objective.loss_type=[VALUE]": "loss_type",
    "task.objective.label_smoothing=VALUE": "label_smoothing",
    "task.objective.loss_type=[robust] task.objective.label_smoothing=VALUE": "dpo_label_smoothing",
    "adapter=VALUE": "adapter_path lora_path",
    "action=merge adapter=outputs/train/RUN action.output_dir=VALUE": "export_dir",
    "task.objective.rewards=[VALUE]": "reward_funcs",
}  # fmt: skip
# Keys that need nothing, beside those of the tables.
_OMITTED = "bf16_full_eval data_seed fast_inference gpu_memory_utilization lora_on_cpu unsloth_force_compile"
WORDS = {  # commands of other tools, and other names of actions
    "sft": "action=train",
    "finetune": "action=train",
    "resume": "action.resume=auto",
    "preprocess": "action=plan",
    **dict.fromkeys(("eval", "test", "validate", "benchmark"), "action=evaluate"),
    **dict.fromkeys(("chat", "infer", "inference", "predict", "cli_demo"), f"action=generate adapter={RUNS}"),
    **dict.fromkeys(("api", "vllm-serve", "webchat"), f"action=serve adapter={RUNS}"),
    **dict.fromkeys(("merge-lora", "merge_lora"), f"action=merge adapter={RUNS}"),
    **dict.fromkeys(("push", "upload"), f"action=export adapter={RUNS} target=hub"),
    "sweep": "-m KEY=VALUE,VALUE",
}
VALUES = {
    "4bit": "nf4",
    "int4": "nf4",
    "8bit": "int8",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "adamw": "adamw_torch",
    "adam": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_bnb_8bit": "adamw_8bit",
    "unsloth": "true",
}  # theirs → ours
OPTIONS = {  # group=value of theirs → what to type
    ("task", "sft"): "task=instruction",
    ("task", "pt"): "task=plain_text",
    ("task", "rm"): "task=reward",
    ("task", "preference"): "task=preferences",
    ("lora", "full"): "lora=none",
    ("device", "gpu"): "device=cuda",
    ("device", "multi_gpu"): "device=ddp",
    **{("trainer", name): "trainer=default" for name in ("sft", "SFTTrainer", "trl")},
    **{("action", name): text for name, text in WORDS.items() if name != "sweep"},
}


@cache
def read_keys() -> dict[str, str | dict[str, str]]:
    """Key → what to type, or value → what to type. Of the tables without keys that have the same name here."""
    keys: dict[str, str | dict[str, str]] = {}
    for key, row in _list_rows():
        known = keys.get(key)
        if isinstance(row.to, dict) and isinstance(known, dict):
            keys[key] = row.to | known
        elif isinstance(row.to, dict) or (row.to and (f".{key}=" not in row.to or row.to.startswith(UNLISTED))):
            keys.setdefault(key, row.to)
    return keys | {name: text for text, names in _SAME.items() for name in names.split()} | _CASES


@cache
def read_omitted() -> frozenset[str]:
    """Keys that need nothing here, or have no counterpart."""
    return frozenset([*_OMITTED.split(), *(key for key, row in _list_rows() if row.not_needed or row.no_counterpart)])


def _list_rows() -> Iterator[tuple[str, tables.Row]]:
    for tool in PEERS:
        for key, row in tables.read_table(tool).rows.items():
            name = key.removeprefix("datasets.") if key.startswith(COLUMNS) else key
            if name not in NOT_TYPED and "." not in name:
                yield name, row


def translate_key(key: str, value: object) -> str | None:
    """What to type for a key of another tool, found by its last dotted part. Empty: nothing; None: no tool has this key."""
    group, _, last = key.rpartition(".")
    if group.partition(".")[0] in PEFTRUN_GROUPS:
        return None
    keys = read_keys()
    translation, text = keys.get(key, keys.get(last)), value if isinstance(value, str) else json.dumps(value)
    text = text.lower() if text in ("True", "False") else text
    if translation is None:
        return DEFAULT if last in read_omitted() else None
    if text in UNSET:
        return DEFAULT
    if isinstance(translation, dict):
        # A value without an entry: `false` is off everywhere; for any other the first entry is the best guess.
        first = DEFAULT if text == "false" else next(iter(translation.values()))
        translation = translation.get(text, translation.get(text.strip("[]\"'"), translation.get(OTHERS, first)))
    if translation in SPECIAL:
        return SPECIAL[translation](text)
    return fill_value(translation, text)


def translate_adapter(value: str) -> str | None:
    """What to type for an `adapter` that is the name of a method; None: it is not."""
    if value in ADAPTERS:
        return ADAPTERS[value]
    return f"lora={value}" if value in paths.list_group_options("lora") else None


def fill_value(text: str, value: str) -> str:
    """`text` with VALUE replaced by the value, quoted for a shell. A list gets no second pair of brackets."""
    text = text.replace(f"[{VALUE}]", VALUE if value.startswith("[") else f"[{VALUE}]")
    if "'" in text or not set(value) & set(" {}\"'"):
        return text.replace(VALUE, value)
    return " ".join(shlex.quote(word.replace(VALUE, value)) if VALUE in word else word for word in text.split(" "))


def _translate_validation(value: str) -> str:
    """What to type for a number of validation rows. A share becomes 100 rows: the size of the data is not known here."""
    if value in ("0", "0.0"):
        return DEFAULT
    return f"task.data.num_validation_rows={value if value.isdigit() else 100} trainer.eval_strategy=steps"


def _translate_special_tokens(value: str) -> str:
    """What to type for a mapping of `pad_token` and others to tokens."""
    return f"'model.special_tokens={re.sub(r'_token(?= *:)', '', value)}'"


def translate_rows(value: str) -> str:
    """What to type for rows in a file or in a dataset on the Hub; of several sources only the first is used."""
    value = SOURCE.sub(r"\1", value) if value[:1] in ("[", "{") else value
    file = Path(value).expanduser()
    if file.is_file():
        from peftrun.data import columns  # imports pyarrow

        return f"{columns.guess_task(file) or 'task=instruction'} task.data.path={value}"
    if value.endswith(SUFFIXES):
        return f"task=instruction task.data.path={value}"
    if "/" in value:  # ORG/NAME
        return f"task=instruction task.data.source=hub task.data.path={value}"
    return "task=instruction task.data.path=FILE"


def translate_option(group: str, value: str, options: Mapping[str, list[str]]) -> str | None:
    """What to type for `group=value`, where the group has no such option. `options`: group → its options."""
    translation = OPTIONS.get((group, value)) or OPTIONS.get((group, value.lower()))
    if translation:
        return translation
    if group == "model" and ("/" in value or value.endswith(".gguf") or Path(value).expanduser().is_dir()):
        return f"model=pretrained model.name_or_path={value}"
    if group == "task" and (value.endswith(SUFFIXES) or "/" in value):
        return translate_rows(value)
    if group == "device" and (value.isdigit() or value.startswith("cuda:")):
        return "device=cuda"
    # An option of another group, such as `task=dora`.
    return next(
        (f"{name}={value}" for name in ("experiment", *options) if name != group and value in options[name]), None
    )


SPECIAL = {ROWS: translate_rows, VALIDATION: _translate_validation, SPECIAL_TOKENS: _translate_special_tokens}
