"""Fields of transformers' model configs, and arguments of its loader: which `model.arguments` takes, and why it does not take the others. Light."""

import ast
from functools import cache
from typing import Any, Literal

from peftrun.config.schema.library_fields import parse_module, read_fields
from peftrun.config.schema.quantization_formats import FORMATS

AUTO = "transformers.models.auto.auto_mappings"
LOADER: dict[str, Any] = {  # arguments of `from_pretrained` itself
    "disable_mmap": bool,
    "experts_implementation": Literal["eager", "batched_mm", "grouped_mm"],
}
INSTEAD = {  # name → what to type in its place; VALUE is its value
    "attn_implementation": "model.attn_implementation=VALUE",
    "device_map": "device=auto, or device=offload",
    "dtype": "device.dtype=VALUE",
    "id2label": "'task.label_names=[NAME,NAME]'",
    "label2id": "'task.label_names=[NAME,NAME]'",
    "load_in_4bit": "model.quantization=nf4",
    "load_in_8bit": "model.quantization=int8",
    "max_memory": "device=offload 'device.max_memory=VALUE'",
    "num_labels": "'task.label_names=[NAME,NAME]'",
    "offload_buffers": "device=offload",
    "offload_folder": "device=offload",
    "quantization_config": f"model.quantization={', '.join(FORMATS)}",
    "revision": "model.revision=VALUE",
    "rope_scaling": "'model.arguments.rope_parameters=VALUE'",
    "rope_theta": "model.arguments.rope_parameters.rope_theta=VALUE",
    "torch_dtype": "device.dtype=VALUE",
    "trust_remote_code": "model.trust_remote_code=VALUE",
}
FILES = dict.fromkeys(
    (
        "config", "gguf_file", "ignore_mismatched_sizes", "key_mapping", "state_dict", "subfolder", "use_safetensors",
        "variant", "weights_only",
    ),
    "the base model is the safetensors files of one folder, each tensor under its own name",
)  # fmt: skip
DOWNLOAD = dict.fromkeys(
    ("cache_dir", "force_download", "local_files_only", "proxies"),
    "downloads follow huggingface_hub's environment variables (HF_HOME, HF_HUB_OFFLINE, HTTPS_PROXY)",
)
SHARDED = dict.fromkeys(
    ("device_mesh", "distributed_config", "tp_plan", "tp_size"), "processes are those of device.strategy"
)
KERNELS = dict.fromkeys(
    ("allow_all_kernels", "fusion_config", "kernel_config", "use_kernels"),
    "it replaces layers that an adapter is attached to",
)
STRUCTURE = dict.fromkeys(
    (
        "attention_bias", "d_ff", "d_kv", "d_model", "head_dim", "hidden_size", "intermediate_size", "mlp_bias", "n_embd", "n_head",
        "n_inner", "n_layer", "num_attention_heads", "num_decoder_layers", "num_experts", "num_heads", "num_hidden_layers",
        "num_key_value_heads", "num_layers", "num_local_experts", "tie_word_embeddings", "type_vocab_size", "vocab_size",
    ),
    "it belongs to the stored weights",
)  # fmt: skip
TOKENS = dict.fromkeys(
    ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"), "it is the base model's own tokenizer's"
)
KIND = dict.fromkeys(
    (
        "architectures", "base_model_prefix", "chunk_size_feed_forward", "is_decoder", "is_encoder_decoder", "model_type",
        "output_attentions", "output_hidden_states", "output_loading_info", "problem_type", "return_dict", "transformers_version",
        "use_cache",
    ),
    "peftrun sets it for what it computes",
)  # fmt: skip
NOT_OFFERED = {  # name → why it cannot be set
    **FILES,
    **DOWNLOAD,
    **SHARDED,
    **KERNELS,
    **STRUCTURE,
    **TOKENS,
    **KIND,
    "token": "secrets are not typed: log in with `hf auth login`",
}


def get_accepted_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Name → type, of all that `model.arguments` takes for a model with this config.json."""
    fields = read_config_fields(str(config.get("model_type"))) or dict.fromkeys(config, Any)
    return LOADER | {
        name: kind for name, kind in fields.items() if name not in INSTEAD and explain_not_offered(name) is None
    }


def explain_not_offered(name: str) -> str | None:
    """Why a field of a model config, or an argument of the loader, cannot be set; None if it can."""
    if name.endswith("_config"):
        return NOT_OFFERED.get(
            name, "a part of a model has a config of its own; change it in the model folder's config.json"
        )
    return NOT_OFFERED.get(name)


@cache
def read_config_fields(model_type: str) -> dict[str, Any]:
    """Field → type, of transformers' config class of a kind of model; empty if transformers has none."""
    name = _read_mapping("CONFIG_MAPPING_NAMES").get(model_type)
    folder = _read_mapping("SPECIAL_MODEL_TYPE_TO_MODULE_NAME").get(model_type, model_type.replace("-", "_"))
    return read_fields(f"transformers.models.{folder}.configuration_{folder}", name) if name else {}


@cache
def _read_mapping(variable: str) -> dict[str, str]:
    """A mapping of names in transformers' source, written as `OrderedDict([(NAME, NAME), …])`."""
    for statement in parse_module(AUTO).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == variable:
            assert isinstance(statement.value, ast.Call)
            return dict(ast.literal_eval(statement.value.args[0]))
    return {}
