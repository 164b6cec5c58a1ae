"""Bases held in few bits, rounded when they are loaded or in their files: what transformers is told, and what must be set right
afterwards."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from peftrun.errors import ModelError
from peftrun.io.atomic_files import read_json

BITSANDBYTES = ("nf4", "fp4", "int8")
# What computes with weights that files hold in few bits, by the name of the method in their config.
REQUIRED_PACKAGES = {
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "torchao": ("torchao",),
    "compressed-tensors": ("compressed_tensors",),
}


def get_stored_quantization(folder: Path) -> str | None:
    """How the files of a model hold its weights in few bits (`gptq`, `awq`, `bitsandbytes`, …); None: they do not."""
    file = folder / "config.json"
    found = read_json(file).get("quantization_config") if file.is_file() else None
    return str(found.get("quant_method", "bitsandbytes")) if found else None


def check_quantization(held: str | None, asked: str | None, name: str, dtype: torch.dtype) -> None:
    """Raises: ModelError: files that hold few bits cannot be rounded again, or nothing installed can compute with them."""
    if held is None:
        return
    if asked is not None:
        raise ModelError(
            f"model.quantization={asked}: the files of {name} hold {held} weights already; type model.quantization=null"
        )
    missing = [one.replace("_", "-") for one in REQUIRED_PACKAGES.get(held, ()) if find_spec(one) is None]
    if missing:
        raise ModelError(
            f"model.name_or_path={name}: its files hold {held} weights, which need {' and '.join(missing)}; type `pip install {' '.join(missing)}` "
            "(GPTQ and AWQ want a GPU), or name the model in full precision"
        )
    if held == "awq" and dtype == torch.bfloat16:
        raise ModelError("device.dtype=bfloat16: AWQ computes in float16; type device.dtype=float16")


def build_quantization_kwargs(name: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments for `from_pretrained` that load a full-precision base in the format `name`, computing in `dtype`.

    Raises: ModelError: the package that computes in this format is not installed.
    """
    if name is None:
        return {}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of a cast at every layer of every step
    from transformers import BitsAndBytesConfig, TorchAoConfig

    try:
        if name == "int8":
            made: Any = BitsAndBytesConfig(load_in_8bit=True)
        elif name in BITSANDBYTES:
            made = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=name,
                bnb_4bit_compute_dtype=dtype,
                bnb_4bit_use_double_quant=True,
            )
        else:
            from torchao.quantization import Int8WeightOnlyConfig

            made = TorchAoConfig(Int8WeightOnlyConfig())
    except ImportError as error:
        raise ModelError(
            f"model.quantization={name}: {' '.join(str(error).split())[:200]}; type model.quantization=null"
        ) from error
    return {"quantization_config": made}


def disable_avx512_repack(model: Any) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in place.

    On CPUs with AVX512-BF16 it does so at the first forward pass in evaluation mode; what reads the weights afterwards
    (training, DoRA's norms, a merge) would read garbage.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
