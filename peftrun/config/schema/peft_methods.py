"""Group `lora`, third part: methods that rotate or scale weights or activations, or prepend virtual tokens.

Field names are PEFT's own. Left out, since a run lacks what they need: X-LoRA, Poly, multitask prompt tuning (trained adapters
or task numbers in each batch), CPT (labeled context); and Shadow, which fails on Llama and GPT-2 in PEFT 0.21.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from peftrun.config.schema.lora import STRICT, Dropout, LayerTargets, Names, Positive, Rank, Targets


@dataclass(config=STRICT)
class AdaptionPromptSpec:
    """LLaMA-Adapter."""

    method: Literal["adaption_prompt"]
    adapter_len: Positive
    adapter_layers: Positive


@dataclass(config=STRICT)
class BeftSpec(Targets):
    """BEFT."""

    method: Literal["beft"]


@dataclass(config=STRICT)
class BoftSpec(LayerTargets):
    """BOFT."""

    method: Literal["boft"]
    boft_block_size: Annotated[int, Field(ge=0, examples=[4])]  # 0: boft_block_num sets the number of blocks
    boft_n_butterfly_factor: Positive
    boft_dropout: Dropout


@dataclass(config=STRICT)
class CartridgeSpec:
    """Cartridge."""

    method: Literal["cartridge"]
    num_virtual_tokens: Positive
    num_frozen_tokens: Annotated[int, Field(ge=0, examples=[1])]


@dataclass(config=STRICT)
class HraSpec(LayerTargets):
    """HRA."""

    method: Literal["hra"]
    r: Rank
    apply_GS: bool


@dataclass(config=STRICT)
class Ia3Spec:
    """IA3."""

    method: Literal["ia3"]
    feedforward_modules: list[str] | str | None
    target_modules: Names | None  # null: PEFT's default modules for this model
    modules_to_save: list[str] | None


@dataclass(config=STRICT)
class LnTuningSpec:
    """LN tuning."""

    method: Literal["ln_tuning"]
    target_modules: Names | None  # null: PEFT's default modules for this model
    modules_to_save: list[str] | None


@dataclass(config=STRICT)
class OftSpec(LayerTargets):
    """OFT."""

    method: Literal["oft"]
    oft_block_size: Annotated[int, Field(ge=0, examples=[16])]  # 0: r sets the number of blocks
    coft: bool
    block_share: bool
    module_dropout: Dropout


@dataclass(config=STRICT)
class OsfSpec(Targets):
    """OSF."""

    method: Literal["osf"]
    effective_rank: Annotated[int, Field(ge=1, examples=[64])] | Annotated[float, Field(gt=0, examples=[0.5])] | None


@dataclass(config=STRICT)
class PTuningSpec:
    """P-tuning."""

    method: Literal["p_tuning"]
    num_virtual_tokens: Positive
    encoder_hidden_size: Positive | None
    encoder_reparameterization_type: Literal["MLP", "LSTM"]
    encoder_num_layers: Positive
    encoder_dropout: Dropout


@dataclass(config=STRICT)
class PrefixTuningSpec:
    """Prefix tuning."""

    method: Literal["prefix_tuning"]
    num_virtual_tokens: Positive
    prefix_projection: bool
    encoder_hidden_size: Positive | None


@dataclass(config=STRICT)
class PromptTuningSpec:
    """Prompt tuning."""

    method: Literal["prompt_tuning"]
    num_virtual_tokens: Positive
    prompt_tuning_init: Literal[
        "RANDOM", "SAMPLE_VOCAB", "TEXT"
    ]  # TEXT: prompt_tuning_init_text, tokenized by the base model's tokenizer


@dataclass(config=STRICT)
class PsoftSpec(LayerTargets):
    """PSOFT."""

    method: Literal["psoft"]
    r: Rank
    psoft_alpha: Positive
    psoft_dropout: Dropout


@dataclass(config=STRICT)
class RoadSpec(Targets):
    """RoAd."""

    method: Literal["road"]
    variant: Literal["road_1", "road_2", "road_4"]
    group_size: Positive


@dataclass(config=STRICT)
class TrainableTokensSpec:
    """Trainable tokens."""

    method: Literal["trainable_tokens"]
    token_indices: Annotated[list[int], Field(min_length=1, examples=[[0]])]
    target_modules: Names | None  # null: PEFT's default modules for this model


METHODS = (
    AdaptionPromptSpec
    | BeftSpec
    | BoftSpec
    | CartridgeSpec
    | HraSpec
    | Ia3Spec
    | LnTuningSpec
    | OftSpec
    | OsfSpec
    | PTuningSpec
    | PrefixTuningSpec
    | PromptTuningSpec
    | PsoftSpec
    | RoadSpec
    | TrainableTokensSpec
)
