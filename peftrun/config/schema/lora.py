"""Group `lora`, first part: LoRA in all its variants, AdaLoRA, and no adapter at all. Field names are PEFT's own."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

# Validators are built at the first use: those of a hundred classes take half a second.
STRICT = ConfigDict(extra="forbid", strict=True, defer_build=True)
Positive = Annotated[int, Field(ge=1, examples=[1])]
Rank = Annotated[int, Field(ge=1, examples=[16])]
Dropout = Annotated[float, Field(ge=0, lt=1, examples=[0.05])]
Alpha = Annotated[int | float, Field(gt=0, examples=[32])]
Names = Annotated[list[str] | str, Field(min_length=1, examples=["all-linear"])]
Layers = list[int] | int  # layer numbers, or one number
INITS = r"^(gaussian|orthogonal|olora|mica|eva|corda|lora_ga|loftq|pissa|pissa_niter_\d+)$"


@dataclass(config=STRICT)
class NoAdapter:
    """Full fine-tuning, the reference that adapters are compared with."""

    method: Literal["none"]


@dataclass(config=STRICT)
class Targets:
    """Fields that most methods share."""

    method: str
    target_modules: Names | None  # null: PEFT's default modules for this model
    modules_to_save: list[str] | None


@dataclass(config=STRICT)
class LayerTargets(Targets):
    """Fields of methods that can be restricted to some layers."""

    layers_to_transform: Layers | None


@dataclass(config=STRICT)
class EvaSpec:
    """How EVA distributes ranks over layers; passed to `peft.EvaConfig`."""

    rho: Annotated[float, Field(ge=1, examples=[2.0])]
    tau: Annotated[float, Field(ge=0, le=1, examples=[0.99])]
    use_label_mask: bool


@dataclass(config=STRICT)
class CordaSpec:
    """Which directions CorDA adapts; passed to `peft.CordaConfig`."""

    corda_method: Literal["ipm", "kpm"]


@dataclass(config=STRICT)
class LoraGaSpec:
    """How LoRA-GA uses the first gradients; passed to `peft.LoraGAConfig`."""

    direction: Literal["ArBr", "A2rBr", "ArB2r", "random"]
    scale: Literal["stable", "weight_svd", "gd_scale", "unit"]
    stable_gamma: Positive


@dataclass(config=STRICT)
class VeloraSpec:
    """How VeLoRA compresses the activations saved for the backward pass; passed to `peft.VeloraConfig`."""

    num_groups: Positive
    scale: Annotated[float, Field(gt=0, examples=[1.0])]
    init_type: Literal["batch_average", "batch_average_once", "random"]


@dataclass(config=STRICT)
class BdLoraSpec:
    """Which of the two matrices of a module is block-diagonal; passed to `peft.BdLoraConfig`."""

    target_modules_bd_a: list[str] | None
    target_modules_bd_b: list[str] | None
    nblocks: Positive
    match_strict: bool


@dataclass(config=STRICT)
class LoraSpec:
    """Passed to `peft.LoraConfig` under the same names; the last three set its initialization and training."""

    method: Literal["lora"]
    r: Rank
    lora_alpha: Alpha
    target_modules: (
        Names | None
    )  # null: PEFT's default modules for this model; none if target_parameters names the experts
    exclude_modules: list[str] | str | None
    lora_dropout: Dropout
    bias: Literal["none", "all", "lora_only"]
    lora_bias: bool
    modules_to_save: list[str] | None
    init_lora_weights: bool | Annotated[str, Field(pattern=INITS)]
    use_rslora: bool
    use_dora: bool
    rank_pattern: dict[str, Positive] | None
    alpha_pattern: dict[str, Alpha] | None
    layers_to_transform: Layers | None
    target_parameters: list[str] | None
    trainable_token_indices: list[int] | dict[str, list[int]] | None
    alora_invocation_tokens: list[int] | str | None
    eva_config: EvaSpec | None
    corda_config: CordaSpec | None
    lora_ga_config: LoraGaSpec | None
    velora_config: VeloraSpec | None
    use_bdlora: BdLoraSpec | None
    calibration_rows: Positive  # training rows that eva, corda and lora_ga use
    loraplus_lr_ratio: Annotated[float, Field(ge=1, examples=[16.0])] | None
    lora_fa: bool


@dataclass(config=STRICT)
class AdaLoraSpec:
    """Passed to `peft.AdaLoraConfig`; total_step is set by the run."""

    method: Literal["adalora"]
    target_r: Rank
    init_r: Rank
    lora_alpha: Alpha
    lora_dropout: Dropout
    tinit: Annotated[int, Field(ge=0, examples=[10])]
    tfinal: Annotated[int, Field(ge=0, examples=[20])]
    deltaT: Positive
    beta1: Annotated[float, Field(gt=0, lt=1, examples=[0.85])]
    beta2: Annotated[float, Field(gt=0, lt=1, examples=[0.85])]
    orth_reg_weight: Annotated[float, Field(gt=0, examples=[0.5])]
    target_modules: Names | None  # null: PEFT's default modules for this model
    modules_to_save: list[str] | None
    layers_to_transform: Layers | None
