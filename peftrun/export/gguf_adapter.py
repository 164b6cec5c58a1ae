"""A LoRA adapter in one GGUF file, as llama.cpp reads it. Light: package gguf is imported where a file is written.

llama.cpp adds alpha/rank·B·A to a weight, rank being each pair's own. Every pair is brought under one alpha, so that this is PEFT's
ΔW whatever made it (rsLoRA, per-layer ranks). Query and key rows of a Llama lie in the order that its rotation wants there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftrun.artifacts.adapter_source import ExportSource
from peftrun.checks.gguf_support import ARCHITECTURES, MERGE_ADVICE, ROTATED
from peftrun.errors import AdapterError, ModelError
from peftrun.export import lora_factors
from peftrun.export.base_config import get_architecture
from peftrun.export.lora_factors import LoraFactors

HEAD_COUNT_KEYS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


def write_gguf_adapter(
    source: ExportSource, base: Mapping[str, Any] | None, base_id: str | None, file: Path
) -> dict[str, Any]:
    """The GGUF adapter in `file`, in float32, and what it holds.

    Raises: ModelError: the base's config is not here, or it is of an architecture that is not converted.
        AdapterError: the adapter does not fit the base, or holds no pairs.
    """
    name = _require_architecture(base)
    assert base is not None
    pairs = lora_factors.read_factors(source)
    if not pairs:
        raise AdapterError(f"{source.folder}: holds no LoRA factors; {MERGE_ADVICE}")
    first = next(iter(pairs.values()))
    alpha = float(np.float32(first.scaling * first.rank))
    tensors = {module: _prepare_factors(module, one, alpha, name, base) for module, one in pairs.items()}
    writer = _open_writer(file, name, alpha, base_id)
    _write_tensors(writer, name, int(base["num_hidden_layers"]), tensors)
    ranks = sorted({one.rank for one in pairs.values()})
    return {"architecture": name, "alpha": alpha, "pairs": len(tensors), "ranks": ranks}


def _require_architecture(base: Mapping[str, Any] | None) -> str:
    if base is None:
        raise ModelError(
            "the base's config.json is not on this machine, and GGUF needs it: put the base back, or export the adapter folder "
            "itself with the base named: type model=pretrained model.name_or_path=FOLDER"
        )
    known = get_architecture(base)
    if known not in ARCHITECTURES:
        raise ModelError(f"the base is a {known}, and {', '.join(ARCHITECTURES)} are converted; {MERGE_ADVICE}")
    return ARCHITECTURES[known]


def _prepare_factors(module: str, pair: LoraFactors, alpha: float, name: str, base: Mapping[str, Any]) -> LoraFactors:
    """A pair under `alpha`, its rows as llama.cpp has them."""
    _check_shape(module, pair, base)
    found = lora_factors.rescale_factors(pair, alpha / pair.rank)
    heads = HEAD_COUNT_KEYS.get(module.rpartition(".")[2])
    if name not in ROTATED or heads is None:
        return found
    count = int(base.get(heads) or base["num_attention_heads"])
    return LoraFactors(found.names, found.a, permute_heads(found.b, count), found.scaling)


def permute_heads(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in pairs (0, half, 1, half + 1, …) in place of two halves."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _check_shape(module: str, pair: LoraFactors, base: Mapping[str, Any]) -> None:
    heads = HEAD_COUNT_KEYS.get(module.rpartition(".")[2])
    if heads is None:
        return
    total = int(base["num_attention_heads"])
    size = int(base.get("head_dim") or int(base["hidden_size"]) // total)
    wanted = (size * int(base.get(heads) or total), int(base["hidden_size"]))
    if (pair.b.shape[0], pair.a.shape[1]) != wanted:
        raise AdapterError(
            f"{module}: ΔW is {pair.b.shape[0]}×{pair.a.shape[1]} and the base's layer {wanted[0]}×{wanted[1]}; name the base it was "
            "made for: type model=pretrained model.name_or_path=FOLDER"
        )


def _open_writer(file: Path, name: str, alpha: float, base_id: str | None) -> Any:
    """The file with what llama.cpp reads before the tensors."""
    import gguf

    writer = gguf.GGUFWriter(file, name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    if base_id:
        organisation, _, model = base_id.partition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, model)
        writer.add_base_model_organization(0, organisation)
    return writer


def _write_tensors(writer: Any, name: str, layers: int, tensors: dict[str, LoraFactors]) -> None:
    """Every pair under llama.cpp's name of its layer; the file is then complete."""
    import gguf

    kind = next(one for one, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(kind, layers)
    for module, pair in tensors.items():
        there = names.get_name(module)
        if there is None:
            raise AdapterError(f"{module}: is no layer that llama.cpp's {name} has; {MERGE_ADVICE}")
        writer.add_tensor(f"{there}.weight.lora_a", np.ascontiguousarray(pair.a))
        writer.add_tensor(f"{there}.weight.lora_b", np.ascontiguousarray(pair.b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
