"""Bases held in few bits: what transformers is told, and what must be set right afterwards."""

import logging
from typing import Any

import torch

from peftrun.errors import ModelError

BITSANDBYTES = ("nf4", "fp4", "int8")


def settings(name: str | None, dtype: torch.dtype) -> dict[str, Any]:
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


def settle(model: Any) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in place.

    On CPUs with AVX512-BF16 it does so at the first forward pass in evaluation mode; what reads the weights afterwards
    (training, DoRA's norms, a merge) would read garbage.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
