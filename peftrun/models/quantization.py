"""Quantized base models (on load, or pre-quantized checkpoints): the transformers config, and a fix to bitsandbytes' default."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import CONV1D_MODEL_TYPES
from peftrun.config.schema.quantization_formats import FORMATS, STORED_FORMATS, StoredFormat
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.io.atomic_files import read_json
from peftrun.models.device import Device

UNLISTED = StoredFormat(())  # transformers itself says what such files need


def get_stored_quantization(folder: Path) -> str | None:
    """Quantization of a model's files (`gptq`, `awq`, `bitsandbytes`, …); None: full precision."""
    file = folder / "config.json"
    config = read_json(file).get("quantization_config") if file.is_file() else None
    return str(config.get("quant_method", "bitsandbytes")) if config else None  # older checkpoints name no method


def check_quantization(folder: Path, spec: ModelSpec, device: Device, dtype: torch.dtype) -> None:
    """Raises: ModelError: quantized files cannot be quantized again; or no installed package, or not this device, computes in the format."""
    stored, requested = get_stored_quantization(folder), spec.quantization
    if stored and requested:
        raise ModelError(
            f"model.quantization={requested}: the files of {spec.name_or_path} hold {stored} weights already; type model.quantization=null"
        )
    if stored:
        _check_stored(stored, spec.name_or_path, device, str(dtype).removeprefix("torch."))
    if requested:
        _check_requested(folder, requested, device, dtype)


def _check_stored(stored: str, name: str, device: Device, dtype: str) -> None:
    needs = STORED_FORMATS.get(stored, UNLISTED)
    missing = [package.replace("_", "-") for package in needs.packages if find_spec(package) is None]
    if missing:
        raise ModelError(
            f"model.name_or_path={name}: its files hold {stored} weights, which need {' and '.join(missing)}; type `pip install {' '.join(missing)}` "
            "(GPTQ and AWQ want a GPU), or name the model in full precision"
        )
    if needs.devices and device.name not in needs.devices:
        raise ModelError(
            f"device={device.name}: the files of {name} hold {stored} weights, which only {' and '.join(needs.devices)} compute with; "
            f"type device={needs.devices[0]}, or name the model in full precision"
        )
    if needs.dtypes and dtype not in needs.dtypes:
        advice = "float32" if device.name == "cpu" else needs.dtypes[0]
        raise ModelError(
            f"device.dtype={dtype}: {stored} weights compute in {needs.dtypes[0]}; type device.dtype={advice}"
        )


def _check_requested(folder: Path, requested: str, device: Device, dtype: torch.dtype) -> None:
    chosen, key = FORMATS[requested], f"model.quantization={requested}"
    if chosen.devices and device.name not in chosen.devices:
        raise ModelError(
            f"{key}: computes on {' and '.join(chosen.devices)} only, not on {device.name}; type model.quantization=nf4"
        )
    if chosen.group and device.name == "cuda" and dtype != torch.bfloat16:
        raise ModelError(f"{key}: computes in bfloat16 on a GPU; type device.dtype=bfloat16")
    base = base_files.read_folder_info(folder)
    if base is None:
        return
    if chosen.package == "torchao" and base.kind in CONV1D_MODEL_TYPES:
        raise ModelError(f"{key}: torchao leaves Conv1D layers ({base.kind}) as they are; type model.quantization=nf4")
    uneven = [name for name, (_, inputs) in base.linears.items() if chosen.group and inputs % chosen.group]
    if uneven:
        raise ModelError(
            f"{key}: {chosen.group} weights share a scale, which does not divide the inputs of {uneven[0]} ({base.linears[uneven[0]][1]}; "
            f"{len(uneven)} such layers), and torchao would leave them as they are; type model.quantization=nf4"
        )


def build_quantization_kwargs(name: str | None, dtype: torch.dtype, device: Device) -> dict[str, Any]:
    """Arguments for `from_pretrained` that quantize a full-precision base model to `name` on load, computing in `dtype`.

    Args: device: torchao stores 4-bit weights in another order on a CPU; FSDP2 shards bytes of one dtype.
    Raises: ModelError: the package that computes in this format is not installed, or is another version.
    """
    if name is None:
        return {}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a cast in every layer of every step
    build = _build_torchao_config if FORMATS[name].package == "torchao" else _build_bitsandbytes_config
    try:
        return {"quantization_config": build(name, dtype, device)}
    except ImportError as error:
        raise ModelError(
            f"model.quantization={name}: {' '.join(str(error).split())[:200]}; type model.quantization=null"
        ) from error


def _build_bitsandbytes_config(name: str, dtype: torch.dtype, device: Device) -> Any:
    from transformers import BitsAndBytesConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=name,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_storage=dtype if device.strategy == "fsdp" else torch.uint8,
    )


def _build_torchao_config(name: str, dtype: torch.dtype, device: Device) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    if name == "torchao_int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    if name == "torchao_fp8":
        return TorchAoConfig(Float8WeightOnlyConfig())
    if device.name == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return TorchAoConfig(PrototypeInt4WeightOnlyConfig(group_size=FORMATS[name].group))
    # the order of torch's own kernel; the default one needs a further package, and PEFT refuses it
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=FORMATS[name].group, int4_packing_format="tile_packed_to_4d"))


def disable_avx512_repack(model: Any) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in place.

    On CPUs with AVX512-BF16 it does so at the first forward pass in evaluation mode; everything that reads the weights afterwards
    (training, DoRA's norms, a merge) would read garbage.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
