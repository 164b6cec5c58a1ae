"""Adapters as PEFT itself makes and saves them, on tiny models whose biases are not zero, as those of trained models are."""

from pathlib import Path
from typing import Any

import torch
from merge_cases import TOKENS
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from peftrun.config.schema.run import ModelSpec
from peftrun.models.base import LoadedBase, load_base
from peftrun.models.device import Device

LLAMA = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
GPT2 = {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True}


def randomized_biases(folder: Path) -> Path:
    """The model in `folder`, its biases drawn at random."""
    net = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(7)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.3)
    net.save_pretrained(folder)
    return folder


def logits(net: Any) -> torch.Tensor:
    with torch.inference_mode():
        return net.eval()(input_ids=TOKENS).logits


def made(model: Path, folder: Path, config: Any, seed: int = 0, **saving: Any) -> torch.Tensor:
    """Saves into `folder` an adapter of `config`, every trained parameter moved at random; the logits it answers with."""
    net = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(seed)
    net = get_peft_model(net, config)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    found = logits(net)
    net.save_pretrained(str(folder), **{"save_embedding_layers": False} | saving)
    return found


def base_of(model: Path) -> LoadedBase:
    return load_base(ModelSpec(str(model), None, None, None, None, False), Device("cpu", torch.float32, ""))
