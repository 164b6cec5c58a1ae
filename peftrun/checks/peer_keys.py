"""Keys of other tools → ours: axolotl, LLaMA-Factory, TRL and transformers, unsloth. Light.

`docs/howto/from-*.md` list the same mapping with the differences; a test compares the two. A key whose last part is the same here
(`learning_rate`, `lora_dropout`) needs no entry: it is found by that part.
"""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from peftrun.config import paths

VALUE, OTHERS = "VALUE", "others"
DEFAULT = ""  # nothing needs to be typed: the value is the default here
ROWS = "ROWS"  # a file or a dataset on the Hub: `translate_rows`
SPECIAL_TOKENS = "SPECIAL_TOKENS"  # role_token → token: `_translate_special_tokens`
VALIDATION = "VALIDATION"  # a number of rows, or a share of them: `_translate_validation`
EACH_EPOCH = "trainer.eval_strategy=epoch task.data.num_validation_rows=100"
RUNS = "outputs/train/RUN"
PEFTRUN_GROUPS = ("action", "tracker", "params", "hydra")  # groups that no other tool has
FILE = "a run is composed of options; put the file's keys into FOLDER/experiment/NAME.yaml and type --config-dir FOLDER experiment=NAME (docs/howto/from-*.md)"
UNSET = ("null", "None", "~", "")
SOURCE = re.compile(r"""\A\[?(?:\{.*?path"?: *)?["']?([^"',}\]\s]+).*""", re.DOTALL)  # A of [{path: A, …}, …] or [A, …]
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt")

_MODEL = "model=pretrained model.name_or_path=VALUE"
_SWITCHES = {  # true: what to type; false: the default
    "load_in_4bit": "model.quantization=nf4",
    "load_in_8bit": "model.quantization=int8",
    "fp16": "device.dtype=float16",
    "pure_bf16": "device.dtype=bfloat16",
    "flash_attention": "model.attn_implementation=flash_attention_2",
    "use_flash_attention_2": "model.attn_implementation=flash_attention_2",
    "sdp_attention": "model.attn_implementation=sdpa",
    "flex_attention": "model.attn_implementation=flex_attention",
    "lora_target_linear": "lora.target_modules=all-linear",
    "train_on_inputs": "task.loss_on=all",
    "train_on_prompt": "task.loss_on=all",
    "assistant_only_loss": "task.loss_on=assistant",
    "group_by_length": "trainer.train_sampling_strategy=group_by_length",
    "pissa_init": "lora.init_lora_weights=pissa_niter_16",
    "reward_model": "task=reward",
    "use_lora": "lora=lora",
    "use_qlora": "experiment=qlora",
    "full_finetuning": "lora=none",
    "wandb": "tracker=wandb",
    "use_tensorboard": "tracker=tensorboard",
    "use_cpu": "device=cpu",
    "predict_with_generate": "task.metrics=[rouge_l]",
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
    "quantization_bit": {"4": "model.quantization=nf4", "8": "model.quantization=int8"},
    "quantization_method": {"bnb": DEFAULT, "bitsandbytes": DEFAULT},
    "flash_attn": {"fa2": _SWITCHES["flash_attention"], "sdpa": _SWITCHES["sdp_attention"], "disabled": "model.attn_implementation=eager", "auto": DEFAULT},
    "finetuning_type": {"lora": "lora=lora", "full": "lora=none", "oft": "lora=oft"},
    "use_peft": {"true": "lora=lora", "false": "lora=none"},
    "lora_target": {"all": "lora.target_modules=all-linear", OTHERS: "lora.target_modules=[VALUE]"},
    "pissa_iter": {"16": DEFAULT, "-1": "lora.init_lora_weights=pissa"},
    "completion_only_loss": {"true": "task.loss_on=completion", "false": "task.loss_on=all"},
    "mask_history": {"true": "task.loss_on=completion", "false": "task.loss_on=assistant"},
    "shuffle_merged_datasets": {"true": DEFAULT, "false": "trainer.train_sampling_strategy=sequential"},
    "optimizer": {"adamw": "trainer.optim=adamw_torch", "adam": "trainer.optim=adamw_torch", "adamw_bnb_8bit": "trainer.optim=adamw_8bit", "adamw_torch_4bit": "trainer.optim=adamw_8bit", OTHERS: "trainer.optim=VALUE"},
    "disable_gradient_checkpointing": {"true": "trainer.gradient_checkpointing=false", "false": "trainer.gradient_checkpointing=true"},
    "use_gradient_checkpointing": {"false": DEFAULT, OTHERS: "trainer.gradient_checkpointing=true"},
    "evaluation_strategy": {
        "no": DEFAULT,
        "steps": "trainer.eval_strategy=steps task.data.num_validation_rows=100",
        "epoch": EACH_EPOCH,
    },
    "saves_per_epoch": {"1": "trainer.save_strategy=epoch", "0": "trainer.save_strategy=no"},
    "report_to": {"none": DEFAULT, **{name: f"tracker={name}" for name in TRACKERS}, OTHERS: f"tracker=NAME, one of {', '.join(TRACKERS)}"},
    "loftq_config": {"none": DEFAULT, "{}": DEFAULT, OTHERS: "lora=loftq model.quantization=nf4"},
    "adapter": ADAPTERS,
    "stage": {"sft": "task=instruction", "pt": "task=plain_text trainer.packing=true", "dpo": "task=dpo", "kto": "task=kto", "rm": "task=reward"},
    "rl": {"dpo": "task=dpo", "ipo": "task=dpo task.objective.loss_type=[ipo]", "orpo": "task=orpo", "kto": "task=kto", "grpo": "task=grpo"},
    "chat_template": {
        "tokenizer_default": DEFAULT,
        **{theirs: f"model.chat_template={name}" for theirs, name in {"phi_3": "phi3", "phi_35": "phi3_5", "qwen_25": "qwen2_5", "deepseek_v3": "deepseekv3"}.items()},
        OTHERS: "model.chat_template=VALUE",
    },
    "pref_loss": {"orpo": "task=orpo", OTHERS: "task.objective.loss_type=[VALUE]"},
}  # fmt: skip
_SAME: dict[str, str] = {  # what to type → their names for it
    _MODEL: "base_model model_name_or_path model_name model_id model_path base pretrained pretrained_model_name_or_path model.name model.path model.id",
    "model.revision=VALUE": "revision_of_model model_revision",
    "model.quantization=VALUE": "bnb_4bit_quant_type",
    "model.chat_template=VALUE": "chat_template_jinja chat_template_path",
    "'model.new_tokens=VALUE'": "tokens",
    "'model.new_tokens=[VALUE]'": "add_tokens add_special_tokens",
    **{f"'model.special_tokens={{{role}: \"VALUE\"}}'": f"{role}_token" for role in ("bos", "eos", "unk", "pad")},
    SPECIAL_TOKENS: "special_tokens",
    "lora.r=VALUE": "lora_r lora_rank rank max_lora_rank",
    "lora.lora_alpha=VALUE": "alpha",
    "lora.lora_dropout=VALUE": "dropout",
    "lora.target_modules=VALUE": "lora_target_modules",
    "lora.target_parameters=VALUE": "lora_target_parameters",
    "lora.modules_to_save=VALUE": "lora_modules_to_save",
    "lora.modules_to_save=[VALUE]": "additional_target",
    "lora.use_dora=VALUE": "peft_use_dora",
    "lora.use_rslora=VALUE": "peft_use_rslora",
    "lora.layers_to_transform=VALUE": "peft_layers_to_transform",
    "lora.init_lora_weights=VALUE": "peft_init_lora_weights",
    ROWS: "dataset datasets dataset_name dataset_path dataset_file data data_path data_file data_files train_file train_data train_dataset train_path",
    "task.data.path=VALUE": "file files",
    "task.data.test_path=VALUE": "eval_dataset eval_file validation_file test_file val_file",
    "task.data.config_name=VALUE": "dataset_config",
    "'task.data.split=\"VALUE\"'": "dataset_train_split",
    "'task.data.test_split=\"VALUE\"'": "dataset_test_split",
    "task.data.streaming=VALUE": "dataset_streaming",
    "task.data.num_train_rows=VALUE": "max_samples max_train_samples",
    VALIDATION: "val_set_size val_size",
    "'task.completion_template=\"{VALUE}\"'": "dataset_text_field",
    "task.messages_column=VALUE": "field_messages",
    "task.chosen_column=VALUE": "field_chosen",
    "task.rejected_column=VALUE": "field_rejected",
    "task.max_length=VALUE": "sequence_len cutoff_len max_seq_length max_seq_len max_len seq_len seq_length model_max_length block_size",
    "'task.system_prompt=\"VALUE\"'": "default_system system_prompt default_system_message",
    "trainer.packing=VALUE": "sample_packing neat_packing",
    "trainer.per_device_train_batch_size=VALUE": "micro_batch_size batch_size train_batch_size per_device_batch_size",
    "trainer.per_device_eval_batch_size=VALUE": "eval_batch_size",
    "trainer.gradient_accumulation_steps=VALUE": "gradient_accumulation grad_accum accumulation_steps",
    "trainer=epochs trainer.num_train_epochs=VALUE": "num_train_epochs num_epochs epochs max_epochs n_epochs",
    "trainer.max_steps=VALUE": "steps iters max_iters num_steps",
    "trainer.learning_rate=VALUE": "lr",
    "trainer.lr_scheduler_type=VALUE": "lr_scheduler scheduler",
    "trainer.lr_scheduler_type=cosine_with_min_lr 'trainer.lr_scheduler_kwargs={min_lr_rate: VALUE}'": "cosine_min_lr_ratio",
    "trainer.warmup_steps=VALUE": "warmup_ratio warmup",
    "trainer.max_grad_norm=VALUE": "gradient_clip_val grad_clip",
    "trainer.use_liger_kernel=VALUE": "enable_liger_kernel use_liger liger_rope liger_rms_norm liger_glu_activation liger_fused_linear_cross_entropy",
    EACH_EPOCH: "evals_per_epoch",
    "seed=VALUE": "random_state random_seed",
    "hydra.run.dir=VALUE": "output_dir out_dir save_dir run_dir",
    "action.resume=auto": "resume resume_from_checkpoint auto_resume_from_checkpoints",
    "tracker=wandb tracker.project=VALUE": "wandb_project",
    "tracker.entity=VALUE": "wandb_entity",
    "tracker=wandb tracker.mode=VALUE": "wandb_mode",
    "tracker=mlflow tracker.uri=VALUE": "mlflow_tracking_uri",
    "tracker=mlflow tracker.project=VALUE": "mlflow_experiment_name",
    "tracker.run_name=VALUE": "wandb_name wandb_run_id run_name",
    "device=deepspeed device.deepspeed_config=VALUE": "deepspeed",
    "device=fsdp trainer.save_strategy=no": "fsdp fsdp_config",
    "device.num_processes=VALUE": "num_gpus n_gpus gpus nproc_per_node num_processes",
    "task.objective.beta=VALUE": "beta rl_beta orpo_alpha pref_beta",
    "task.objective.loss_type=[VALUE]": "loss_type",
    "task.objective.label_smoothing=VALUE": "label_smoothing",
    "task.objective.loss_type=[robust] task.objective.label_smoothing=VALUE": "dpo_label_smoothing",
    "task.objective.desirable_weight=VALUE": "desirable_weight kto_desirable_weight kto_chosen_weight",
    "task.objective.undesirable_weight=VALUE": "undesirable_weight kto_undesirable_weight kto_rejected_weight",
    "task.objective.center_rewards_coefficient=VALUE": "center_rewards_coefficient",
    "task.objective.num_generations=VALUE": "num_generations",
    "task.objective.max_completion_length=VALUE": "max_completion_length",
    "task.objective.temperature=VALUE": "temperature",
    "adapter=VALUE": "adapter_path lora_path adapter_name_or_path lora_model_dir",
    "action=merge adapter=outputs/train/RUN action.output_dir=VALUE": "export_dir",
    "task.objective.rewards=[VALUE]": "reward_funcs",
    "device.deterministic=VALUE": "full_determinism",
}  # fmt: skip
KEYS: dict[str, str | dict[str, str]] = {
    **{name: text for text, names in _SAME.items() for name in names.split()},
    **_CASES,
}
# Keys without a counterpart; the guides say why.
_OMITTED = """
    base_model_config model_type tokenizer_type is_mistral_derived_model tokenizer_config gptq tf32 xformers_attention eot_tokens
    template model_config unfrozen_parameters lora_fan_in_fan_out lora_mlp_kernel lora_qkv_kernel lora_o_kernel
    eval_sample_packing pad_to_sequence_len dataset_prepared_path remove_unused_columns gradient_checkpointing_kwargs
    loss_watchdog_threshold loss_watchdog_patience strict wandb_watch wandb_log_model eval_table_size eval_table_max_new_tokens
    debug local_rank plugins ddp_find_unused_parameters
    double_quantization use_unsloth rope_scaling shift_attn resize_vocab pissa_convert create_new_adapter infer_backend upcast_layernorm low_cpu_mem_usage
    dataset_dir overwrite_cache preprocessing_num_workers tokenized_path do_train do_eval save_only_model overwrite_output_dir plot_loss ddp_timeout
    pref_ftx ref_model
    tokenizer_name_or_path torch_dtype use_bnb_nested_quant lora_task_type max_prompt_length packing_strategy
    dataset_num_proc logging_strategy log_level average_tokens_across_devices precompute_ref_log_probs
    logging_first_step logging_dir save_safetensors data_seed disable_tqdm eval_packing use_vllm vllm_mode
    fast_inference gpu_memory_utilization unsloth_force_compile lora_on_cpu dataset_processes dataset_keep_in_memory bf16_full_eval
    """
OMITTED = frozenset(_OMITTED.split())
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


def translate_key(key: str, value: object) -> str | None:
    """What to type for a key of another tool, found by its last dotted part. Empty: nothing; None: no tool has this key."""
    group, _, last = key.rpartition(".")
    if group.partition(".")[0] in PEFTRUN_GROUPS:
        return None
    translation, text = KEYS.get(key, KEYS.get(last)), value if isinstance(value, str) else json.dumps(value)
    text = text.lower() if text in ("True", "False") else text
    if translation is None:
        return DEFAULT if last in OMITTED else None
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
