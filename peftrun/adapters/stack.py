"""A stack: a fresh adapter is trained on top of a saved one, its parent, which stays as it is.

Both are low-rank changes of the same weights, so that their sum is one too, of the sum of their ranks: A over A, B beside B. The sum is what
is saved as the adapter; whatever loads a LoRA loads it, and needs to know of no stack. Its parts are kept beside it, in `stack/`.
"""

import copy
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import set_seed

from peftrun.adapters import attach, load, probes, reference, save, target_modules
from peftrun.adapters.joint import attach_cells
from peftrun.adapters.load import LoadProof
from peftrun.adapters.reference import FROZEN
from peftrun.artifacts.adapter_folder import STACK, STACKED_ON, AdapterRef
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFTRUN_METADATA
from peftrun.errors import ProofError
from peftrun.io import atomic_files
from peftrun.models.base import LoadedBase
from peftrun.system.versions import get_version

SUM = "sum"  # name of the adapter that parent and fresh adapter add up to
PARTS = ("0", "1")  # folders in `stack/`: the parent, and the adapter that was trained on it


def attach_stacked(
    base: LoadedBase, parent: AdapterRef, lora: Any, seed: int, allow_base_mismatch: bool
) -> tuple[Any, LoadProof]:
    """The base model with `parent`, frozen, and a fresh adapter `default`, both active; and the proof that the parent was loaded.

    Raises: PeftrunError: see `load.load` and `attach.attach_adapter`.
    """
    target_modules.check_target_modules(
        base.model, lora
    )  # before the first adapter, which changes the names of modules
    config = attach.build_peft_config(base, lora, None)
    resolved = attach_cells.resolve_targets(base.model, config)
    net, (proof,) = load.load(base, {FROZEN: replace(parent, name=FROZEN)}, FROZEN, allow_base_mismatch)
    set_seed(seed)  # PEFT initializes from torch's global generator
    try:
        net.add_adapter(attach.ADAPTER_NAME, resolved)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise attach.to_config_error(error, lora, base) from error
    attach_cells.restore_requested_targets(net.peft_config[attach.ADAPTER_NAME], config)
    net.peft_config[attach.ADAPTER_NAME].fan_in_fan_out = net.peft_config[FROZEN].fan_in_fan_out  # the layers'
    reference.activate(net, [attach.ADAPTER_NAME, FROZEN])
    reference.freeze_parent(net)
    attach.prepare_training(net, lora)
    return net, proof


def add_sum(base: LoadedBase, net: Any) -> dict[str, float]:
    """Adds the sum of both adapters as adapter SUM. Returns the largest difference of its logits from those of the stack, and the rank.

    Raises: ProofError: it is larger than rounding allows.
    """
    with net.disable_adapter():
        plain = probes.compute_probe_logits(net, base.tokenizer)
    stacked = probes.compute_probe_logits(net, base.tokenizer)
    layers = {path: module for path, module in net.get_base_model().named_modules() if isinstance(module, LoraLayer)}
    factors = {path: _sum_factors(layer) for path, layer in layers.items()}
    net.add_adapter(SUM, _build_sum_config(net, {path: len(a) for path, (a, _) in factors.items()}))
    for path, values in factors.items():
        _set_factors(layers[path], *values)
    net.set_adapter(SUM, inference_mode=True)
    summed = probes.compute_probe_logits(net, base.tokenizer)
    difference = probes.compare_logits(stacked, summed)["max_logit_difference"]
    dtype = str(base.model.dtype).removeprefix("torch.")
    limit = probes.logit_tolerance(stacked, probes.compare_logits(plain, stacked)["max_logit_difference"], dtype)
    if not difference <= limit:  # not `>`, which is False for NaN
        raise ProofError(
            f"action.stack=true: the sum of both adapters answers otherwise than the stack (max |Δlogit| {difference:.3g}, tolerance {limit:g}); "
            "this is a fault of peftrun or PEFT: report it, and merge the first adapter before the second is trained meanwhile"
        )
    return {"max_logit_difference": difference, "rank": net.peft_config[SUM].r}


def _sum_factors(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """A (Σr, in) and scaling·B (out, Σr) of the sum of a layer's adapters, those of a convolution with its kernel's dimensions."""
    pairs = [(*_get_factors(layer, name), layer.scaling[name]) for name in layer.scaling]
    a = torch.cat([a for a, _, _ in pairs])
    return a, torch.cat([scaling * b for _, b, scaling in pairs], dim=1)


def _get_factors(layer: LoraLayer, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_A[name].detach(), layer.lora_embedding_B[name].detach()
    return layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()


@torch.no_grad()
def _set_factors(layer: LoraLayer, a: torch.Tensor, b: torch.Tensor) -> None:
    assert layer.scaling[SUM] == 1.0, "the factors contain the scaling"
    own_a, own_b = _get_factors(layer, SUM)
    own_a.copy_(a)
    own_b.copy_(b)


def _build_sum_config(net: Any, ranks: dict[str, int]) -> Any:
    """PEFT's config of the sum. Args: ranks: path of each layer → rank."""
    config = copy.copy(net.peft_config[attach.ADAPTER_NAME])
    config.r = config.lora_alpha = Counter(ranks.values()).most_common(1)[0][0]
    config.rank_pattern = {path: rank for path, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = dict(config.rank_pattern)  # alpha = r: a scaling of 1
    config.target_modules = _shorten_names(net.get_base_model(), set(ranks))
    config.use_rslora, config.init_lora_weights, config.inference_mode = False, True, True
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    return config


def _shorten_names(model: Any, paths: set[str]) -> set[str]:
    """The last parts of the layers' names, where they select these layers alone; otherwise their full names."""
    ends = {path.rpartition(".")[2] for path in paths}
    selected = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in ends}
    return ends if selected == paths else paths


def save_stacked(net: Any, base: LoadedBase, parent: AdapterRef, target: Path, derived_from: dict[str, Any]) -> None:
    """Writes the sum to the new folder `target`, and both parts to `stack/` in it. Args: derived_from: see `save.save`.

    Raises: ArtifactError: see `save.save`.
    """

    def write_parts(root: Path) -> dict[str, Any]:
        first, second = (root / STACK / part for part in PARTS)
        first.mkdir(parents=True)
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFTRUN_METADATA):
            if (parent.folder / name).is_file():
                shutil.copyfile(parent.folder / name, first / name)
        save.write_adapter(net, attach.ADAPTER_NAME, second, None)
        digests = [atomic_files.hash_file(folder / ADAPTER_WEIGHTS) for folder in (first, second)]
        about = {"peftrun": get_version("peftrun"), "base": base.describe(), STACKED_ON: digests[0]}
        atomic_files.write_json(second / PEFTRUN_METADATA, about)
        parts = zip((first, second), digests, strict=True)
        return {STACK: [{"folder": str(part.relative_to(root)), "sha256": digest} for part, digest in parts]}

    save.save(
        net, base, target, untrained=set(), names=[SUM], top=SUM, derived_from=derived_from, write_beside=write_parts
    )
