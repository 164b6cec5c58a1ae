"""A merge as PEFT's documentation has it: python -m benchmarks.gpu.peft_merge DEVICE BASE ADAPTER OUTPUT"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def merge(device: str, base: str, adapter: str, output: str) -> None:
    """Loads to the device, merges, saves."""
    net = AutoModelForCausalLM.from_pretrained(base, dtype="auto").to(device)
    PeftModel.from_pretrained(net, adapter).merge_and_unload().save_pretrained(output, max_shard_size="5GB")
    if device == "cuda":
        print(f"peak_gpu={torch.cuda.max_memory_allocated() / 2**30:.2f}")


if __name__ == "__main__":
    merge(*sys.argv[1:5])
