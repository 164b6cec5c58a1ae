"""Group `lora`, second part: methods other than LoRA that add an update to the weights. Field names are PEFT's own."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from peftrun.config.schema.lora import STRICT, Dropout, LayerTargets, Positive, Rank, Targets


@dataclass(config=STRICT)
class AdamssSpec(LayerTargets):
    """AdaMSS."""

    method: Literal["adamss"]
    r: Rank
    num_subspaces: Positive
    subspace_rank: Rank


@dataclass(config=STRICT)
class C3aSpec(LayerTargets):
    """C3A."""

    method: Literal["c3a"]
    block_size: Positive


@dataclass(config=STRICT)
class DeftSpec(LayerTargets):
    """DEFT."""

    method: Literal["deft"]
    r: Rank
    decomposition_method: Literal["relu", "qr"]
    deft_dropout: Dropout


@dataclass(config=STRICT)
class DeloraSpec(LayerTargets):
    """DeLoRA."""

    method: Literal["delora"]
    r: Rank
    delora_lambda: Positive
    module_dropout: Dropout


@dataclass(config=STRICT)
class FourierftSpec(LayerTargets):
    """FourierFT."""

    method: Literal["fourierft"]
    n_frequency: Positive
    scaling: Annotated[float, Field(gt=0, examples=[150.0])]
    random_loc_seed: Annotated[int, Field(ge=0, examples=[777])]


@dataclass(config=STRICT)
class FrodSpec(LayerTargets):
    """FRoD."""

    method: Literal["frod"]
    sparse_rate: Annotated[float, Field(gt=0, examples=[0.01])]
    frod_dropout: Dropout


@dataclass(config=STRICT)
class GloraSpec(Targets):
    """GLoRA."""

    method: Literal["glora"]
    r: Rank
    config_A_B: Literal["lora", "vector", "constant", "none"]
    config_C: Literal["lora", "vector", "none"]
    config_D_E: Literal["vector", "constant", "none"]


@dataclass(config=STRICT)
class GraloraSpec(LayerTargets):
    """GraLoRA."""

    method: Literal["gralora"]
    r: Rank
    alpha: Positive
    gralora_k: Positive
    hybrid_r: Annotated[int, Field(ge=0, examples=[0])]
    gralora_dropout: Dropout


@dataclass(config=STRICT)
class HiraSpec(LayerTargets):
    """HiRA."""

    method: Literal["hira"]
    r: Rank
    hira_dropout: Dropout


@dataclass(config=STRICT)
class LilySpec(LayerTargets):
    """Lily."""

    method: Literal["lily"]
    r: Rank
    stride_A: Positive
    num_B: Positive
    scaling: Annotated[float, Field(gt=0, examples=[1.0])]


@dataclass(config=STRICT)
class LohaSpec(LayerTargets):
    """LoHa."""

    method: Literal["loha"]
    r: Rank
    alpha: Positive
    rank_dropout: Dropout
    module_dropout: Dropout


@dataclass(config=STRICT)
class LokrSpec(LayerTargets):
    """LoKr."""

    method: Literal["lokr"]
    r: Rank
    alpha: Positive
    decompose_both: bool
    decompose_factor: Annotated[int, Field(ge=-1, examples=[-1])]
    rank_dropout: Dropout
    module_dropout: Dropout


@dataclass(config=STRICT)
class MissSpec(LayerTargets):
    """MiSS."""

    method: Literal["miss"]
    r: Rank
    miss_dropout: Dropout


@dataclass(config=STRICT)
class PeanutSpec(LayerTargets):
    """PEANuT."""

    method: Literal["peanut"]
    r: Rank
    depth: Annotated[int, Field(ge=0, examples=[0])]
    act_fn: Literal["relu", "sigmoid", "tanh", "gelu", "silu"]
    scaling: Annotated[float, Field(gt=0, examples=[1.0])]


@dataclass(config=STRICT)
class PveraSpec(LayerTargets):
    """PVeRA."""

    method: Literal["pvera"]
    r: Rank
    d_initial: Annotated[float, Field(gt=0, examples=[0.1])]
    pvera_dropout: Dropout


@dataclass(config=STRICT)
class RandloraSpec(LayerTargets):
    """RandLoRA."""

    method: Literal["randlora"]
    r: Rank
    randlora_alpha: Positive
    randlora_dropout: Dropout


@dataclass(config=STRICT)
class ShiraSpec(Targets):
    """SHiRA."""

    method: Literal["shira"]
    r: Rank
    random_seed: Annotated[int, Field(ge=0, examples=[0])] | None


@dataclass(config=STRICT)
class SupertuningSpec(Targets):
    """Super-tuning."""

    method: Literal["supertuning"]
    sparsity: Annotated[float, Field(gt=0, lt=1, examples=[0.99])]


@dataclass(config=STRICT)
class TinyloraSpec(LayerTargets):
    """TinyLoRA."""

    method: Literal["tinylora"]
    r: Rank
    u: Positive
    projection_seed: Annotated[int, Field(ge=0, examples=[42])]
    tinylora_dropout: Dropout


@dataclass(config=STRICT)
class UniloraSpec(LayerTargets):
    """Uni-LoRA."""

    method: Literal["unilora"]
    r: Rank
    theta_d_length: Positive
    proj_seed: Annotated[int, Field(ge=0, examples=[42])]
    unilora_dropout: Dropout


@dataclass(config=STRICT)
class VbloraSpec(LayerTargets):
    """VB-LoRA."""

    method: Literal["vblora"]
    r: Rank
    num_vectors: Positive
    vector_length: Positive
    topk: Positive
    vblora_dropout: Dropout


@dataclass(config=STRICT)
class VeraSpec(LayerTargets):
    """VeRA."""

    method: Literal["vera"]
    r: Rank
    d_initial: Annotated[float, Field(gt=0, examples=[0.1])]
    projection_prng_key: Annotated[int, Field(ge=0, examples=[0])]
    vera_dropout: Dropout


@dataclass(config=STRICT)
class WaveftSpec(LayerTargets):
    """WaveFT."""

    method: Literal["waveft"]
    n_frequency: Positive
    scaling: Annotated[float, Field(gt=0, examples=[25.0])]
    random_loc_seed: Annotated[int, Field(ge=0, examples=[777])]
    wavelet_family: Annotated[str, Field(examples=["db1"])]


METHODS = (
    AdamssSpec
    | C3aSpec
    | DeftSpec
    | DeloraSpec
    | FourierftSpec
    | FrodSpec
    | GloraSpec
    | GraloraSpec
    | HiraSpec
    | LilySpec
    | LohaSpec
    | LokrSpec
    | MissSpec
    | PeanutSpec
    | PveraSpec
    | RandloraSpec
    | ShiraSpec
    | SupertuningSpec
    | TinyloraSpec
    | UniloraSpec
    | VbloraSpec
    | VeraSpec
    | WaveftSpec
)
