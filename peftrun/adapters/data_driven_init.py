"""Initialisations that look at training rows, gradients or rounding errors before the first step: EVA, CorDA, LoRA-GA, LoftQ."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils.loftq_utils import _SafetensorLoader

from peftrun.config.schema.lora import LoraSpec
from peftrun.errors import ConfigError
from peftrun.models.base import LoadedBase

Batches = list[dict[str, torch.Tensor]]


@contextmanager
def collect_statistics(base: LoadedBase, config: Any, batches: Batches) -> Iterator[None]:
    """For as long as the block runs, the base's layers carry what CorDA and LoRA-GA have learned from the batches."""
    start = getattr(config, "init_lora_weights", None)
    if start not in ("corda", "lora_ga"):
        yield
        return
    config.target_modules = _maybe_include_all_linear_layers(config, base.model).target_modules
    if start == "corda":
        with torch.no_grad():
            preprocess_corda(base.model, config, run_model=lambda: _run_forward(base.model, batches))
    else:
        _collect_gradients(base.model, config, batches)
    yield


def apply_data_driven_init(base: LoadedBase, net: Any, lora: Any, batches: Batches) -> None:
    """Gives a fresh adapter the weights that EVA or LoftQ starts from.

    Raises: ConfigError: LoftQ on a base that is not in 4 bits.
    """
    start = lora.init_lora_weights if isinstance(lora, LoraSpec) else None
    if start == "eva":
        initialize_lora_eva_weights(net, batches, show_progress_bar=False)
    if start == "loftq":
        if base.spec.quantization not in ("nf4", "fp4"):
            raise ConfigError(
                "lora.init_lora_weights=loftq: starts from what 4-bit rounding took from the base; type model.quantization=nf4"
            )
        _init_loftq(base, net)


@torch.no_grad()
def _init_loftq(base: LoadedBase, net: Any) -> None:
    """B·A times the scaling is the best low-rank part of what 4-bit rounding took from each weight (Li et al. 2023, one round).

    PEFT's own function wants a GPU and takes the scaling for 1.
    """
    from bitsandbytes.functional import dequantize_4bit

    stored = _SafetensorLoader(net, str(base.folder))
    for name, module in net.named_modules():
        weight: Any = getattr(getattr(module, "base_layer", None), "weight", None)
        if not isinstance(module, LoraLayer) or not hasattr(weight, "quant_state"):
            continue
        exact = stored.get_tensor(f"{name.removeprefix('base_model.model.')}.weight").to(weight.device, torch.float32)
        missing = exact - dequantize_4bit(weight.data, weight.quant_state).float()
        left, strength, right = torch.linalg.svd(missing, full_matrices=False)
        rank, half = module.r["default"], strength.sqrt()
        down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
        down.copy_(half[:rank, None] * right[:rank])
        up.copy_(left[:, :rank] * half[:rank] / module.scaling["default"])


def _run_forward(model: Any, batches: Batches) -> None:
    """Row by row: CorDA's hook takes an input for one text."""
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
            model(input_ids=ids[mask][None])


def _collect_gradients(model: Any, config: Any, batches: Batches) -> None:
    """LoRA-GA reads gradients of the weights themselves, which are frozen otherwise."""

    def step() -> None:
        for batch in batches:
            model(**batch).loss.backward()

    model.requires_grad_(True)
    try:
        preprocess_loraga(model, config, train_step=step)
    finally:
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
