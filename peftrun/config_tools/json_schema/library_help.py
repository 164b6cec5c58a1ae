"""The help texts of PEFT's and TRL's configs, for keys that are passed on under their own names."""

import dataclasses
from functools import cache

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig, CordaConfig, EvaConfig, LoraGAConfig, VeloraConfig
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, SFTConfig
from trl.experimental.orpo import ORPOConfig

from peftrun.config.schema import lora as lora_methods
from peftrun.config.schema import run as schema
from peftrun.config_tools.json_schema.sources import METHODS, OBJECTIVES, get_tag

OBJECTIVE_CONFIGS: dict[str, type] = {
    "dpo": DPOConfig,
    "kto": KTOConfig,
    "orpo": ORPOConfig,
    "reward": RewardConfig,
    "grpo": GRPOConfig,
}
NESTED_CONFIGS: dict[type, type] = {
    lora_methods.EvaSpec: EvaConfig,
    lora_methods.CordaSpec: CordaConfig,
    lora_methods.LoraGaSpec: LoraGAConfig,
    lora_methods.VeloraSpec: VeloraConfig,
    lora_methods.BdLoraSpec: BdLoraConfig,
}


@cache
def get_library_help(owner: type) -> dict[str, str]:
    """Field → "LIBRARY: HELP" on one line; empty if the dataclass is not passed on to a library."""
    library, config = _find_library_config(owner)
    return {} if config is None else _read_help(library, config)


@cache
def get_arguments_help() -> dict[str, str]:
    """The same for every field of a training config, whatever the objective."""
    return {
        name: text
        for config in (SFTConfig, *OBJECTIVE_CONFIGS.values())
        for name, text in _read_help("TRL", config).items()
    }


def _read_help(library: str, config: type) -> dict[str, str]:
    helps = {field.name: field.metadata.get("help") for field in dataclasses.fields(config)}
    # A stray comma in PEFT's source makes some help texts tuples of strings.
    texts = {name: text if isinstance(text, str) else " ".join(text) for name, text in helps.items() if text}
    return {name: f"{library}: {' '.join(text.split())}" for name, text in texts.items()}


def _find_library_config(owner: type) -> tuple[str, type | None]:
    """(name of the library, its config class) for a dataclass of ours, or ("", None)."""
    if owner is schema.TrainerSpec:
        return "TRL", SFTConfig
    if owner in OBJECTIVES:
        return "TRL", OBJECTIVE_CONFIGS[get_tag(owner)]
    if owner in NESTED_CONFIGS:
        return "PEFT", NESTED_CONFIGS[owner]
    if owner in METHODS and owner is not lora_methods.NoAdapter:
        return "PEFT", PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(get_tag(owner).upper())]
    return "", None
