"""Floating point operations of a LoRA training step, and the share of the card's peak that a rate of tokens is (MFU)."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import CARD, WORK

CEILINGS = WORK / "ceilings.json"  # written by phase env


def count_parameters(config: dict[str, Any], rank: int) -> tuple[int, int]:
    """(P, l): frozen and adapter parameters of the matrix products of a token, for LoRA on every linear layer. The head counts, the embedding does not."""
    h, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or h // heads
    shapes = [(h, heads * head), (h, kv * head), (h, kv * head), (heads * head, h), (h, inner), (h, inner), (inner, h)]
    frozen = layers * sum(a * b for a, b in shapes) + h * config["vocab_size"]
    return frozen, layers * sum(rank * (a + b) for a, b in shapes)


def count_flops(config: dict[str, Any], rank: int, tokens: float) -> float:
    """FLOPs of a trained token in a row of `tokens`; what checkpointing computes again is not counted.

    Products: 6 P (2 + l / P) / 3, since a frozen weight needs no gradient of its own: about 4 P.
    Causal attention: 6 · layers · width · tokens.
    Source: NeMo's `llama3_flops` with the factor (2 + lora / frozen) / 3 of its LoRA recipes.
    """
    frozen, lora = count_parameters(config, rank)
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    width *= config["num_attention_heads"]
    return 6 * frozen * (2 + lora / frozen) / 3 + 6.0 * config["num_hidden_layers"] * width * tokens


def compute_mfu(folder: Path, rank: int, tokens: float, tokens_per_second: float) -> dict[str, Any]:
    """TFLOP/s, and its share of the data sheet's peak (`mfu`) and of the product that phase env measured; None where unknown."""
    config = json.loads((folder / "config.json").read_text())
    frozen, lora = count_parameters(config, rank)
    rate, peak = count_flops(config, rank, tokens) * tokens_per_second / 1e12, CARD.get("peak_tflops")
    measured = json.loads(CEILINGS.read_text())["matmul_tflops"] if CEILINGS.exists() else None
    shares = {
        "mfu": rate / peak if peak else None,
        "mfu_of_measured": rate / measured if measured else None,
    }
    return {"tflops": rate, **shares, "frozen": frozen, "trained": lora}
