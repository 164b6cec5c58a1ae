"""The proof of a load without the base in memory: its layers are read from their files as the probes come to them."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from peftrun import adapter_folder, adapter_rules, artifacts, fingerprint, heads, model, quantize
from peftrun.adapter import base_match, layer_walk, load, nature, probe, skeleton
from peftrun.adapter.layer_walk import NotWalkableError, Pass
from peftrun.adapter.load import LoadProof
from peftrun.base_tokenizer import load_tokenizer
from peftrun.device import Device
from peftrun.merge import in_memory, streamed_proof, streaming
from peftrun.model import Base
from peftrun.schema import ModelSpec


def prove(
    spec: ModelSpec, place: Device, path: str, name: str, allow_base_mismatch: bool
) -> tuple[Base, Any, LoadProof]:
    """The base without weights, PEFT's model on it, and the proof of the adapter's load.

    Raises: AdapterError, ProofError: see `load.load`. NotWalkableError: this adapter or model needs the whole base in memory.
    """
    folder, base = adapter_folder.locate(path, name), model.locate(spec)
    _check_walkable(spec, place, folder)
    head, mark = heads.of_adapter(path, name), fingerprint.of_model(base)
    tokenizer = load_tokenizer(base, spec)
    base_match.check(model.portable_name(spec), mark, folder, allow_base_mismatch, lambda: tokenizer)
    net, plain = skeleton.build(base, spec, path, name), model.empty(base, spec, head)
    adapted, call = net.get_base_model(), nature.calls(net)
    files = streaming.stored_in(adapted, base)
    for one in (plain, adapted):
        one.config.use_cache = False
    passes = [
        Pass(one, streamed_proof.reader(one, files, place.dtype), partial(probe.logits, whole, tokenizer, call))
        for one, whole in ((plain, plain), (adapted, net))
    ]
    tensors = load.check_tensors(net, name, folder)
    logits = layer_walk.run(passes)
    computed = load.Computed(logits[0], logits[1], f"{place.name} {place.dtype_name}")
    loaded = load.prove_by(mark, net, name, folder, computed, tensors=tensors)
    return Base(plain, tokenizer, base, model.portable_name(spec), spec.revision, mark, spec, place, head), net, loaded


def _check_walkable(spec: ModelSpec, place: Device, folder: Path) -> None:
    config = artifacts.read_json(folder / artifacts.ADAPTER_CONFIG)
    kind = str(config.get("peft_type"))
    why = {
        "the device is no CPU": place.name != "cpu" or place.max_memory is not None or place.dtype == torch.float16,
        "the base is quantized": spec.quantization is not None or quantize.held_in(model.locate(spec)) is not None,
        f"{kind} adapters are not on layers alone": kind in (*streaming.IN_MEMORY, *in_memory.VIRTUAL),
        "the adapter needs the base's weights": adapter_rules.needs_weights(config) is not None,
        "the adapter changes its base": adapter_rules.change_to_base(config) is not None,
    }
    if any(why.values()):
        raise NotWalkableError(next(reason for reason, holds in why.items() if holds))
