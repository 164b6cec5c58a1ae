"""Attaches a saved adapter, the parent, to be trained further: its load is proved as every load, then its weights are trainable."""

from dataclasses import replace
from typing import Any

import torch
from peft import PromptTuningInit, VeloraConfig

from peftrun.adapters import add, attach, base_match, load, peft_config, probes
from peftrun.adapters.load import LoadProof
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.adapter_settings import is_for_training
from peftrun.config import usage
from peftrun.models.base import LoadedBase


def attach_parent(
    base: LoadedBase, adapter: AdapterRef, lora: Any, allow_base_mismatch: bool = False
) -> tuple[Any, LoadProof]:
    """The base model with the saved adapter as its trainable adapter `default`, and the proof of the load.

    Its method and size are the file's; of `lora` only what concerns the training is read, such as dropout.

    Raises: AdapterError: the adapter does not fit, or was made for another base model.
        ProofError: it is loaded, but changes nothing, or its logits differ from those when it was saved.
    """
    parent = replace(adapter, name=attach.ADAPTER_NAME)
    check_parent(base, parent, allow_base_mismatch)
    plain = compute_plain_logits(base, parent)
    config = read_trainable_config(parent, lora)
    start = getattr(config, "prompt_tuning_init", None)
    if start is not None:  # PEFT would start from words, and read a tokenizer for them
        config.prompt_tuning_init = PromptTuningInit.RANDOM
    net = add.add_adapter(base, base.model, None, parent, config)
    if start is not None:
        config.prompt_tuning_init = start
    proof = load.verify_load(base, net.eval(), parent, plain)
    attach.prepare_training(net, lora)
    return net, proof


def check_parent(base: LoadedBase, adapter: AdapterRef, allow_base_mismatch: bool) -> None:
    """Raises: AdapterError: loading it cannot restore the saved model, or it was made for another base model."""
    add.check_adapter_rules(base, {adapter.name: adapter})
    base_match.check_base_match(base.name, base.fingerprint, adapter, allow_base_mismatch, lambda: base.tokenizer)


def compute_plain_logits(base: LoadedBase, adapter: AdapterRef) -> torch.Tensor:
    """The base model's logits on the probes of this adapter; before it is attached."""
    return probes.compute_probe_logits(base.model, base.tokenizer, adapter.config.get("alora_invocation_tokens"))


def read_trainable_config(adapter: AdapterRef, lora: Any) -> Any:
    """PEFT's config of the adapter, to be trained, with those fields of `lora` that may differ from one training to the next."""
    config = peft_config.read_peft_config(adapter)
    config.inference_mode = False
    # Reading all fields counts them as used: the others were compared with the file's before the run began.
    for key, value in usage.collect_kwargs(lora, attach.PEFTRUN_FIELDS).items():
        if is_for_training(key) and hasattr(config, key):
            setattr(config, key, VeloraConfig(**value) if key == "velora_config" and value else value)
    return config
