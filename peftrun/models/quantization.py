"""Quantized base models (on load, or pre-quantized checkpoints): the transformers config, and a fix to bitsandbytes' default."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from peftrun.errors import ModelError
from peftrun.io.atomic_files import read_json

BITSANDBYTES = ("nf4", "fp4", "int8")
# `quant_method` in the config of a pre-quantized checkpoint → packages that compute with its weights.
REQUIRED_PACKAGES = {
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "torchao": ("torchao",),
    "compressed-tensors": ("compressed_tensors",),
}


def get_stored_quantization(folder: Path) -> str | None:
    """Quantization of a model's files (`gptq`, `awq`, `bitsandbytes`, …); None: full precision."""
    file = folder / "config.json"
    config = read_json(file).get("quantization_config") if file.is_file() else None
    return str(config.get("quant_method", "bitsandbytes")) if config else None  # older checkpoints name no method


def check_quantization(stored: str | None, requested: str | None, name: str, dtype: torch.dtype) -> None:
    """Raises: ModelError: files that are quantized cannot be quantized again, or no installed package computes with them."""
    if stored is None:
        return
    if requested is not None:
        raise ModelError(
            f"model.quantization={requested}: the files of {name} hold {stored} weights already; type model.quantization=null"
        )
    packages = REQUIRED_PACKAGES.get(stored, ())
    missing = [package.replace("_", "-") for package in packages if find_spec(package) is None]
    if missing:
        raise ModelError(
            f"model.name_or_path={name}: its files hold {stored} weights, which need {' and '.join(missing)}; type `pip install {' '.join(missing)}` "
            "(GPTQ and AWQ want a GPU), or name the model in full precision"
        )
    if stored == "awq" and dtype == torch.bfloat16:
        raise ModelError("device.dtype=bfloat16: AWQ computes in float16; type device.dtype=float16")


def build_quantization_kwargs(name: str | None, dtype: torch.dtype, is_sharded: bool = False) -> dict[str, Any]:
    """Arguments for `from_pretrained` that quantize a full-precision base model to `name` on load, computing in `dtype`.

    Args: is_sharded: FSDP2 will shard it, which wants 4-bit weights in bytes of the dtype of all others.
    Raises: ModelError: the package that computes in this format is not installed.
    """
    if name is None:
        return {}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a cast in every layer of every step
    from transformers import BitsAndBytesConfig, TorchAoConfig

    try:
        if name == "int8":
            config: Any = BitsAndBytesConfig(load_in_8bit=True)
        elif name in BITSANDBYTES:
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=name,
                bnb_4bit_compute_dtype=dtype,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_quant_storage=dtype if is_sharded else torch.uint8,
            )
        else:
            from torchao.quantization import Int8WeightOnlyConfig

            config = TorchAoConfig(Int8WeightOnlyConfig())
    except ImportError as error:
        raise ModelError(
            f"model.quantization={name}: {' '.join(str(error).split())[:200]}; type model.quantization=null"
        ) from error
    return {"quantization_config": config}


def disable_avx512_repack(model: Any) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in place.

    On CPUs with AVX512-BF16 it does so at the first forward pass in evaluation mode; everything that reads the weights afterwards
    (training, DoRA's norms, a merge) would read garbage.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
