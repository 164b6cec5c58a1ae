"""GGUF files, converted to the safetensors folders that everything else reads."""

from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftrun import console
from peftrun.artifacts import base_location
from peftrun.io import atomic_files
from peftrun.system.silence import suppress_output


def convert_gguf(gguf: Path) -> Path:
    """The safetensors folder of a GGUF file, dequantized to float32; written to the cache once per content of the file."""
    target = base_location.converted_gguf_dir(gguf)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # cells of a sweep may start at the same time
        if target.is_dir():
            return target
        console.print_info(f"converting {gguf.name} to safetensors, once (about half a minute)")
        source: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
        with atomic_files.create_folder(target) as folder, suppress_output():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
            # The weights are plain float32 now, but transformers still treats the model as quantized and refuses to save it.
            model.hf_quantizer = None
            del model.config.quantization_config
            model.config.name_or_path = gguf.stem
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
    return target
