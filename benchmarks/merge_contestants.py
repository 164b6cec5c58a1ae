"""What merge.py times, each in a process of its own: the base and adapters are built here, and PEFT's merge run."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

VOCABULARY, RANK = 32000, 16
# Billions of parameters → width, inner width, layers, heads of a Llama.
SIZES = {"0.5": (1024, 2816, 32, 16), "2": (2560, 6912, 24, 20), "7": (4096, 11008, 32, 32)}
TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def build(folder: Path, shape: tuple[int, int, int, int], dtype: str = "bfloat16", biases: bool = False) -> None:
    """A random Llama, a layer a file, none of it held; and a LoRA of rank 16 for each entry of TARGETS. `biases`: of its attention, and of the LoRA."""
    width, inner, layers, heads = shape
    base = folder / "base"
    base.mkdir(parents=True)
    LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        tie_word_embeddings=False, architectures=["LlamaForCausalLM"], attention_bias=biases, dtype=dtype,
    ).save_pretrained(base)  # fmt: skip
    _tokenizer().save_pretrained(base)
    torch.manual_seed(0)
    places: dict[str, str] = {}
    outer = {
        "model.embed_tokens.weight": (VOCABULARY, width),
        "lm_head.weight": (VOCABULARY, width),
        "model.norm.weight": (width,),
    }
    parts = [
        outer,
        *(
            {f"model.layers.{one}.{key}": shape for key, shape in _layer(width, inner, biases).items()}
            for one in range(layers)
        ),
    ]
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(
            {key: _random(key, shape, getattr(torch, dtype)) for key, shape in part.items()},
            base / name,
            {"format": "pt"},
        )
        places |= dict.fromkeys(part, name)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for name, targets in TARGETS.items():
        write_adapter(folder / name, targets, parts[1:], biases)


def _layer(width: int, inner: int, biases: bool) -> dict[str, tuple[int, ...]]:
    square: dict[str, tuple[int, ...]] = {f"self_attn.{one}_proj.weight": (width, width) for one in "qkvo"}
    square |= {f"self_attn.{one}_proj.bias": (width,) for one in "qkvo" if biases}
    mlp = {
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    return {**square, **mlp, "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}


def _random(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if key.endswith("norm.weight"):
        return torch.ones(shape, dtype=dtype)
    return torch.empty(shape, dtype=dtype).normal_(0, 0.02)


def write_adapter(
    folder: Path, targets: Collection[str], layers: Sequence[Mapping[str, tuple[int, ...]]], biases: bool = False
) -> None:
    """A LoRA with random A and B in the layers named; `biases`: B has one, as with `lora_bias`."""
    settings = {"lora_bias": True} if biases else {}
    LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules=list(targets), **settings
    ).save_pretrained(folder)
    tensors = {}
    for key, shape in (
        (key, shape) for layer in layers for key, shape in layer.items() if key.split(".")[-2] in targets
    ):
        path = f"base_model.model.{key.rpartition('.')[0]}"
        if key.endswith(".bias"):
            tensors[f"{path}.lora_B.bias"] = torch.randn(shape) * 0.01
        else:
            tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, shape[1]) / shape[1] ** 0.5
            tensors[f"{path}.lora_B.weight"] = torch.randn(shape[0], RANK) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def merge(folder: Path, adapter: str, output: Path, dtype: str) -> None:
    """As the documentation of PEFT has it: load, merge, save in bfloat16."""
    net = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=getattr(torch, dtype))
    merged = PeftModel.from_pretrained(net, str(folder / adapter)).merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(output, max_shard_size="500MB")


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(["</s>", *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]), SIZES[sys.argv[3]])
    else:
        merge(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), sys.argv[5])
