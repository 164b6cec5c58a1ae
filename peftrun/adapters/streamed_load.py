"""Verifies the load of an adapter without the base model in memory: its layers are read from their files when the probes reach them."""

from functools import partial
from typing import Any

import torch

from peftrun.adapters import base_match, layer_walk, load, meta_model, probes, traits
from peftrun.adapters.layer_walk import ForwardPass, NotWalkableError
from peftrun.adapters.load import LoadProof
from peftrun.adapters.merge import streamed_verify, streaming
from peftrun.artifacts import adapter_rules, base_files, classifier_head, fingerprint
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.config.schema.method_traits import get_method_traits
from peftrun.config.schema.run import ModelSpec
from peftrun.models import base as base_models
from peftrun.models import quantization
from peftrun.models.base import LoadedBase
from peftrun.models.device import Device
from peftrun.models.tokenizer import load_tokenizer


def verify_streamed_load(
    spec: ModelSpec, device: Device, adapter: AdapterRef, allow_base_mismatch: bool
) -> tuple[LoadedBase, Any, LoadProof]:
    """The base model without weights, PEFT's model on it, and the proof of the adapter's load.

    Raises: AdapterError, ProofError: see `load.load`. NotWalkableError: this adapter or model needs the whole base model in memory.
    """
    base = base_models.resolve_base_dir(spec)
    _check_walkable(spec, device, adapter.config)
    head, mark = (
        classifier_head.read_adapter_head(adapter),
        fingerprint.fingerprint_model(base).with_arguments(spec.arguments),
    )
    tokenizer = load_tokenizer(base, spec)
    base_match.check_base_match(
        base_files.format_base_name(spec), mark, adapter, allow_base_mismatch, lambda: tokenizer
    )
    net, plain = meta_model.build_on_meta(base, spec, adapter), base_models.build_empty(base, spec, head)
    adapted, call = net.get_base_model(), traits.get_invocation_tokens(net)
    files = streaming.map_stored_tensors(adapted, base)
    passes = []
    for model, caller in ((plain, plain), (adapted, net)):  # PEFT's model calls the adapted one
        model.config.use_cache = False
        read = streamed_verify.make_reader(model, files, device.dtype)
        passes.append(ForwardPass(model, read, partial(probes.compute_probe_logits, caller, tokenizer, call)))
    tensors = load.check_tensors(net, adapter)
    logits = layer_walk.run_passes(passes)
    computed = load.ProbeLogits(logits[0], logits[1], f"{device.name} {device.dtype_name}")
    loaded = load.verify_load_by_logits(mark, net, adapter, computed, tensors=tensors)
    return (
        LoadedBase(plain, tokenizer, base, base_files.format_base_name(spec), spec.revision, mark, spec, device, head),
        net,
        loaded,
    )


def choose_dtype(place: Device, adapter: AdapterRef) -> Device:
    """`place` as device.dtype=auto chose it, with no regard to the size of a base model that is not held in memory.

    But in bfloat16 if the adapter's logits were recorded in it only, on such a device: they are compared in no other dtype.
    """
    recorded = (adapter.metadata or {}).get("probe", {})
    if f"{place.name} {place.dtype_name}" in recorded or f"{place.name} bfloat16" not in recorded:
        return place
    return place.with_bfloat16("the dtype of the logits that were recorded with the adapter")


def _check_walkable(spec: ModelSpec, device: Device, config: dict[str, Any]) -> None:
    peft_type = str(config.get("peft_type"))
    reasons = {
        "the device is not a CPU": device.name != "cpu"
        or device.max_memory is not None
        or device.dtype == torch.float16,
        "the base model is quantized": spec.quantization is not None
        or quantization.get_stored_quantization(base_models.resolve_base_dir(spec)) is not None,
        f"{peft_type} adapters change more than layers": not get_method_traits(peft_type).streams,
        "the adapter needs the base model's weights": adapter_rules.why_weights_needed(config) is not None,
        "the adapter changes its base model": adapter_rules.describe_base_change(config) is not None,
    }
    if any(reasons.values()):
        raise NotWalkableError(next(reason for reason, applies in reasons.items() if applies))
