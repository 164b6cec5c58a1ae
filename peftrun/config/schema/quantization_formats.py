"""Formats of `model.quantization`, and of model files that are quantized: what peftrun's rules need to know of each. Light."""

from dataclasses import dataclass, replace
from typing import Literal

Quantization = Literal["nf4", "fp4", "int8", "torchao_int8", "torchao_fp8", "torchao_int4"]


@dataclass(frozen=True)
class QuantizationFormat:
    """A format that linear layers are quantized to while the base model is loaded.

    Attributes:
        package: computes in it.
        bits: per weight, scales included.
        rounds_inputs: a layer's inputs are rounded to 8 bits too, all rows of a batch together.
        group: weights that share a scale; it divides the inputs of each layer. None: a format that takes any layer.
        no_gradient: why nothing can be trained on it; None if an adapter can.
        devices: types of device that compute in it; empty: those of the package.
    """

    package: str
    bits: float
    rounds_inputs: bool = False
    group: int | None = None
    no_gradient: str | None = None
    devices: tuple[str, ...] = ()


FOUR_BITS = QuantizationFormat("bitsandbytes", 4.5)
EIGHT_BITS = QuantizationFormat("torchao", 8.25)
FORMATS: dict[str, QuantizationFormat] = {
    "nf4": FOUR_BITS,
    "fp4": FOUR_BITS,
    "int8": QuantizationFormat("bitsandbytes", 8.25, rounds_inputs=True),
    "torchao_int8": EIGHT_BITS,
    "torchao_fp8": replace(EIGHT_BITS, devices=("cpu", "cuda", "xpu")),
    "torchao_int4": QuantizationFormat(
        "torchao", 5, group=64, no_gradient="torchao's 4-bit product has no gradient", devices=("cpu", "cuda")
    ),
}  # by `model.quantization`


@dataclass(frozen=True)
class StoredFormat:
    """A format of quantized files.

    Attributes:
        packages: compute with its weights.
        devices: types of device that do; empty: all.
        dtypes: what it computes in; empty: all.
    """

    packages: tuple[str, ...]
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()


STORED_FORMATS: dict[str, StoredFormat] = {
    "gptq": StoredFormat(("optimum", "gptqmodel")),
    "awq": StoredFormat(("gptqmodel",), dtypes=("float16", "float32")),
    "bitsandbytes": StoredFormat(("bitsandbytes",)),
    "torchao": StoredFormat(("torchao",)),
    "compressed-tensors": StoredFormat(("compressed_tensors",)),
    "hqq": StoredFormat(("hqq",), devices=("cuda", "xpu")),
    "aqlm": StoredFormat(("aqlm",)),
    "eetq": StoredFormat(("kernels",), devices=("cuda",)),
}  # by `quant_method` in a model's config.json
