"""Base and adapter as one full model, in float32 in memory, by PEFT's own definition of every method."""

from pathlib import Path
from typing import Any

import torch

from peftrun import safetensors_file
from peftrun.model import Base

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def write(model: Any, base: Base, folder: Path, dtype: torch.dtype) -> None:
    """Writes the merged weights, rounded once to `dtype`, and the tokenizer into `folder`. `model` is used up."""
    merged = model.merge_and_unload(safe_merge=True).to(dtype)
    merged.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def stored_dtype(folder: Path) -> str:
    """The dtype that most bytes of a model folder are stored in; float32 if that is none of the usual."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        for entry in safetensors_file.entries(file):
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.begin
    return DTYPES.get(max(sizes, key=lambda name: sizes[name]), "float32")
