"""The proof of a load without the base in memory: its layers are read from their files as the probes come to them."""

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
    spec: ModelSpec, place: Device, adapter: AdapterRef, allow_base_mismatch: bool
) -> tuple[LoadedBase, Any, LoadProof]:
    """The base without weights, PEFT's model on it, and the proof of the adapter's load.

    Raises: AdapterError, ProofError: see `load.load`. NotWalkableError: this adapter or model needs the whole base in memory.
    """
    base = base_models.resolve_base_dir(spec)
    _check_walkable(spec, place, adapter.config)
    head, mark = classifier_head.read_adapter_head(adapter), fingerprint.fingerprint_model(base)
    tokenizer = load_tokenizer(base, spec)
    base_match.check_base_match(
        base_files.format_base_name(spec), mark, adapter, allow_base_mismatch, lambda: tokenizer
    )
    net, plain = meta_model.build_on_meta(base, spec, adapter), base_models.build_empty(base, spec, head)
    adapted, call = net.get_base_model(), traits.get_invocation_tokens(net)
    files = streaming.map_stored_tensors(adapted, base)
    for one in (plain, adapted):
        one.config.use_cache = False
    passes = [
        ForwardPass(
            one,
            streamed_verify.make_reader(one, files, place.dtype),
            partial(probes.compute_probe_logits, whole, tokenizer, call),
        )
        for one, whole in ((plain, plain), (adapted, net))
    ]
    tensors = load.check_tensors(net, adapter)
    logits = layer_walk.run_passes(passes)
    computed = load.ProbeLogits(logits[0], logits[1], f"{place.name} {place.dtype_name}")
    loaded = load.verify_load_by_logits(mark, net, adapter, computed, tensors=tensors)
    return (
        LoadedBase(plain, tokenizer, base, base_files.format_base_name(spec), spec.revision, mark, spec, place, head),
        net,
        loaded,
    )


def _check_walkable(spec: ModelSpec, place: Device, config: dict[str, Any]) -> None:
    kind = str(config.get("peft_type"))
    why = {
        "the device is no CPU": place.name != "cpu" or place.max_memory is not None or place.dtype == torch.float16,
        "the base is quantized": spec.quantization is not None
        or quantization.get_stored_quantization(base_models.resolve_base_dir(spec)) is not None,
        f"{kind} adapters are not on layers alone": not get_method_traits(kind).streams,
        "the adapter needs the base's weights": adapter_rules.why_weights_needed(config) is not None,
        "the adapter changes its base": adapter_rules.describe_base_change(config) is not None,
    }
    if any(why.values()):
        raise NotWalkableError(next(reason for reason, holds in why.items() if holds))
