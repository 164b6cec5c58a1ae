"""Models in one GGUF file, as the folders of safetensors that everything else reads."""

from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftrun import console
from peftrun.artifacts import hub_files
from peftrun.io import atomic_files
from peftrun.system.silence import suppress_output


def convert_gguf(gguf: Path) -> Path:
    """A GGUF file as a safetensors folder in the cache, dequantised to float32, written once for its content."""
    target = hub_files.converted_gguf_dir(gguf)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            console.print_info(f"converting {gguf.name} to safetensors, once (about half a minute)")
            with atomic_files.create_folder(target) as folder, suppress_output():
                _write_converted(gguf, folder)
    return target


def _write_converted(gguf: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are plain float32 by now, yet transformers still takes the model for a quantised one, which it refuses to save.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.config._name_or_path = gguf.stem
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(folder)
