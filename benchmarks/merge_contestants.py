"""What merge.py times, each in a process of its own: the base and adapter are built here, and PEFT's merge run."""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHARD = "500MB"


def build(folder: Path, layers: int) -> None:
    """A random Llama of TinyLlama's dimensions in bfloat16 shards, and a LoRA of rank 16 on its every linear layer."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    net = LlamaForCausalLM(config)
    net.save_pretrained(folder / "base", max_shard_size=SHARD)
    _tokenizer().save_pretrained(folder / "base")
    adapted = get_peft_model(net, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.01
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)


def merge(folder: Path, output: Path) -> None:
    """As the documentation of PEFT has it: load in the dtype of the files, merge, save."""
    net = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    merged = PeftModel.from_pretrained(net, str(folder / "adapter")).merge_and_unload()
    merged.save_pretrained(output, max_shard_size=SHARD)


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(["</s>", *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        merge(Path(sys.argv[2]), Path(sys.argv[3]))
