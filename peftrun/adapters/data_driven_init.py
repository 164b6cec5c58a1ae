"""Initializations from training rows, gradients or quantization errors: EVA, CorDA, LoRA-GA, LoftQ."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga

from peftrun.compat.peft import expand_target_modules, open_base_weights
from peftrun.config.schema.lora import LoraSpec
from peftrun.errors import ConfigError
from peftrun.models.base import LoadedBase

Batches = list[dict[str, torch.Tensor]]  # input_ids, attention_mask, labels: (B, T) each


@contextmanager
def collect_statistics(base: LoadedBase, config: Any, batches: Batches) -> Iterator[None]:
    """Collects the statistics of CorDA or LoRA-GA on the base model's layers, where get_peft_model reads them within the block."""
    init = getattr(config, "init_lora_weights", None)
    if init not in ("corda", "lora_ga"):
        yield
        return
    # expanded here as get_peft_model does later: the preprocessing only matches names
    config.target_modules = expand_target_modules(config, base.model).target_modules

    def run_model() -> None:
        for batch in batches:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
                base.model(input_ids=ids[mask][None])  # (1, T): CorDA's hook accepts a single text without padding

    def compute_gradients() -> None:
        for batch in batches:
            base.model(**batch).loss.backward()

    if init == "corda":
        with torch.no_grad():
            preprocess_corda(base.model, config, run_model=run_model)
    else:
        base.model.requires_grad_(
            True
        )  # LoRA-GA reads gradients of the base model's weights, which are frozen otherwise
        try:
            preprocess_loraga(base.model, config, train_step=compute_gradients)
        finally:
            base.model.requires_grad_(False)
            base.model.zero_grad(set_to_none=True)
    yield


def apply_data_driven_init(base: LoadedBase, net: Any, lora: Any, batches: Batches) -> None:
    """Sets a fresh adapter's weights to the initialization of EVA or LoftQ; does nothing for others.

    Raises: ConfigError: LoftQ on a base model that is not in 4 bits.
    """
    init = lora.init_lora_weights if isinstance(lora, LoraSpec) else None
    if init == "eva":
        initialize_lora_eva_weights(net, batches, show_progress_bar=False)
    if init == "loftq":
        if base.spec.quantization not in ("nf4", "fp4"):
            raise ConfigError(
                "lora.init_lora_weights=loftq: starts from what 4-bit rounding took from the base; type model.quantization=nf4"
            )
        _init_loftq(base, net)


@torch.no_grad()
def _init_loftq(base: LoadedBase, net: Any) -> None:
    """Sets scaling·B·A to the best rank-r approximation of each weight's 4-bit quantization error (Li et al. 2023, one iteration).

    PEFT's own function needs a GPU and assumes a scaling of 1.
    """
    from bitsandbytes.functional import dequantize_4bit

    files = open_base_weights(net, str(base.folder))
    for name, module in net.named_modules():
        weight: Any = getattr(getattr(module, "base_layer", None), "weight", None)
        if not isinstance(module, LoraLayer) or not hasattr(weight, "quant_state"):
            continue
        exact = files.get_tensor(f"{name.removeprefix('base_model.model.')}.weight").to(weight.device, torch.float32)
        error = exact - dequantize_4bit(weight.data, weight.quant_state).float()  # (out, in)
        u, s, vh = torch.linalg.svd(error, full_matrices=False)
        rank, root = module.r["default"], s.sqrt()
        # the singular values are split evenly between the factors
        module.lora_A["default"].weight.copy_(root[:rank, None] * vh[:rank])  # (r, in)
        module.lora_B["default"].weight.copy_(u[:, :rank] * root[:rank] / module.scaling["default"])  # (out, r)
