"""Writes a LoRA adapter as one GGUF file for llama.cpp. Light: package gguf is imported when a file is written.

llama.cpp adds alpha/rank·B·A to a weight, with one alpha for the file and the rank of each pair. Each B is rescaled so that this equals
PEFT's ΔW, also for rsLoRA and per-layer ranks. Query and key rows of a Llama are permuted to the order that llama.cpp's RoPE expects.
"""

from collections.abc import Mapping
from dataclasses import replace
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
    """Writes the adapter to `file` in float32; returns a summary.

    Raises: ModelError: the base model's config is not on this machine, or its architecture is not supported.
        AdapterError: the adapter does not fit the base model, or has no LoRA factors.
    """
    if base is None:
        raise ModelError(
            "the base model's config.json is not on this machine, and GGUF needs it: restore the base model, or export the adapter folder "
            "itself and name the base model: type model=pretrained model.name_or_path=FOLDER"
        )
    model_class = get_architecture(base)
    if model_class not in ARCHITECTURES:
        raise ModelError(
            f"the base model is a {model_class}, and only {', '.join(ARCHITECTURES)} are supported; {MERGE_ADVICE}"
        )
    architecture = ARCHITECTURES[model_class]
    pairs = lora_factors.read_factors(source)
    if not pairs:
        raise AdapterError(f"{source.folder}: holds no LoRA factors; {MERGE_ADVICE}")
    first = next(iter(pairs.values()))
    alpha = float(np.float32(first.scaling * first.rank))  # GGUF stores it in float32
    tensors = {module: _convert_factors(module, pair, alpha, architecture, base) for module, pair in pairs.items()}
    import gguf

    # The metadata that llama.cpp requires of an adapter.
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    if base_id:
        organization, _, model = base_id.partition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, model)
        writer.add_base_model_organization(0, organization)
    _write_tensors(writer, architecture, int(base["num_hidden_layers"]), tensors)
    ranks = sorted({pair.rank for pair in pairs.values()})
    return {"architecture": architecture, "alpha": alpha, "pairs": len(tensors), "ranks": ranks}


def _convert_factors(
    module: str, pair: LoraFactors, alpha: float, architecture: str, base: Mapping[str, Any]
) -> LoraFactors:
    """A pair rescaled to `alpha`, with the rows of B in llama.cpp's order. Raises: AdapterError: its shape does not fit."""
    scaled = lora_factors.rescale_factors(pair, alpha / pair.rank)
    count_key = HEAD_COUNT_KEYS.get(module.rpartition(".")[2])
    if count_key is None:  # not a query or key projection
        return scaled
    total = int(base["num_attention_heads"])
    heads = int(base.get(count_key) or total)  # without num_key_value_heads, as many as query heads
    head_dim = int(base.get("head_dim") or int(base["hidden_size"]) // total)
    shape, expected = (pair.b.shape[0], pair.a.shape[1]), (head_dim * heads, int(base["hidden_size"]))  # (out, in)
    if shape != expected:
        raise AdapterError(
            f"{module}: ΔW is {shape[0]}×{shape[1]} and the base model's layer {expected[0]}×{expected[1]}; name the base model it was "
            "made for: type model=pretrained model.name_or_path=FOLDER"
        )
    return replace(scaled, b=permute_heads(scaled.b, heads)) if architecture in ROTATED else scaled


def permute_heads(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads · head_dim, r) with each head's two halves interleaved: 0, half, 1, half + 1, …"""
    half = rows.shape[0] // heads // 2
    # transformers rotates the first half of a head against the second, llama.cpp (and Meta) neighboring rows.
    return rows.reshape(heads, 2, half, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _write_tensors(writer: Any, architecture: str, layers: int, tensors: dict[str, LoraFactors]) -> None:
    """Writes every pair under llama.cpp's name of its layer, and closes the file."""
    import gguf

    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, layers)
    for module, pair in tensors.items():
        layer = names.get_name(module)  # model.layers.0.self_attn.q_proj → blk.0.attn_q
        if layer is None:
            raise AdapterError(f"{module}: llama.cpp's {architecture} has no such layer; {MERGE_ADVICE}")
        writer.add_tensor(f"{layer}.weight.lora_a", np.ascontiguousarray(pair.a))  # (r, in)
        writer.add_tensor(f"{layer}.weight.lora_b", np.ascontiguousarray(pair.b))  # (out, r)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
