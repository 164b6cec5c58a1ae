"""Rules that follow from an `adapter_config.json`: whether loading restores the saved model, and which adapters can share a base model.

Some initializations move a part of the base model's weights into the adapter. peftrun converts such adapters to plain LoRA when it saves
them; unconverted ones belong to a base model that differs from the one on disk. Light.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from peftrun.config.schema.method_traits import get_init_traits, get_method_traits
from peftrun.formatting import format_value

AdapterConfig = Mapping[str, Any]
UNSUMMABLE = (  # settings of LoRA that are on
    "use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "layer_replication", "lora_bias",
    "use_bdlora", "use_qalora", "velora_config", "kasa_config", "monteclora_config", "arrow_config",
)  # fmt: skip
CONVERT_ADVICE = "save it again where it was trained: model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=UNTRAINED_ADAPTER)"


def get_base_changing_init(config: AdapterConfig) -> str | None:
    """The adapter's `init_lora_weights` if it changes the base model's weights, else None."""
    init = config.get("init_lora_weights", True)
    return None if get_init_traits(init).keeps_base else str(init)


def why_not_loadable(config: AdapterConfig) -> str | None:
    """Why loading this adapter cannot restore the model that was saved; None if it can."""
    kind = _type_name(config.get("peft_type"))
    if missing := get_method_traits(kind).missing_input:
        return f"is of type {kind}, which {missing}, and peftrun gives none; use it with PEFT itself"
    init = get_base_changing_init(config)
    if init is None or get_init_traits(init).repeatable:
        return None
    return (
        f"was started with init_lora_weights={init}, which changed the base's weights in a way that loading cannot repeat, and was not "
        f"converted; {CONVERT_ADVICE}"
    )


def why_not_merged(config: AdapterConfig) -> str | None:
    """Why this adapter cannot be merged, as it is no change of the base model's weights; None if it is one."""
    if config.get("alora_invocation_tokens"):
        return "is active only after its invocation tokens (aLoRA)"
    if config.get("layer_replication"):
        return "repeats layers of the base model with shared weights (layer_replication), which a merged model cannot"
    return (
        None if get_method_traits(config.get("peft_type")).merges else "prepends virtual tokens, which are not weights"
    )


def describe_taken_from_base(config: AdapterConfig) -> str | None:
    """What PEFT subtracts from the base model's weights when it adds this adapter; None if nothing."""
    init = get_base_changing_init(config)
    if init is not None:
        return f"takes part of the base's weights away (init_lora_weights={init}, not converted)"
    if config.get("kasa_config"):
        return "takes the smallest directions out of the base's weights (kasa_config)"
    return None


def why_weights_needed(config: AdapterConfig) -> str | None:
    """Why PEFT cannot add this adapter to a base model whose weights are not in memory; None if it can."""
    taken = describe_taken_from_base(config)
    if taken:
        return f"this adapter {taken}"
    if config.get("save_projection") is False:
        return "this adapter's projections are not in its file (save_projection=false), so PEFT draws them again"
    if config.get("monteclora_config"):
        return "PEFT makes this adapter's samplers with the weights that they vary (monteclora_config)"
    return None


def describe_base_change(config: AdapterConfig) -> str | None:
    """How loading this adapter changes the base model itself, which then cannot be shared; None if it does not."""
    taken, bias = describe_taken_from_base(config), config.get("bias") or "none"
    if taken:
        return taken
    if bias != "none":
        return f"replaces the base's biases (bias={bias})"
    if config.get("layer_replication"):
        return "repeats layers of the base (layer_replication)"
    return None


def why_not_twice(config: AdapterConfig) -> str | None:
    """Why one base model cannot hold this adapter and a copy of it; None if it can."""
    if get_method_traits(config.get("peft_type")).loads_beside:
        return describe_base_change(config)
    return f"is of type {_type_name(config.get('peft_type'))}, of which PEFT holds one at a time"


def find_unsummable_setting(config: AdapterConfig) -> str | None:
    """The setting that makes an adapter more than its low-rank factors, such as `use_dora=true`; None if it can be added to another."""
    if (kind := _type_name(config.get("peft_type"))) != "LORA":
        return f"peft_type={kind}"
    if (task := config.get("task_type")) in ("SEQ_CLS", "TOKEN_CLS"):
        return f"task_type={task}"
    if (bias := config.get("bias") or "none") != "none":
        return f"bias={bias}"
    init = get_init_traits(config.get("init_lora_weights", True))
    is_drawn = init.plain or (init.keeps_base and init.calibrated)
    key = next((key for key in UNSUMMABLE if config.get(key)), None if is_drawn else "init_lora_weights")
    return f"{key}={format_value(config[key])}" if key else None


def suggest_remedy(config: AdapterConfig) -> str:
    """How to use an adapter that changes its base model."""
    if get_base_changing_init(config):
        return f"load it alone, or {CONVERT_ADVICE}"
    return (
        "load it alone"
        if config.get("layer_replication")
        else "load it alone, or merge it (peftrun action=merge adapter=…)"
    )


def check_loadable_together(configs: Mapping[str, AdapterConfig]) -> Iterator[str]:
    """One line for each adapter that cannot be loaded with the others."""
    if len(configs) < 2:
        return
    first = next(iter(configs))
    for name, config in configs.items():
        change, kind = describe_base_change(config), config.get("peft_type")
        if change:
            yield f"adapter.{name}: {change}, so the others would answer from a changed base; {suggest_remedy(config)}"
        elif kind != configs[first].get("peft_type"):
            yield (
                f"adapter.{name}: is of type {_type_name(kind)} and adapter.{first} of type {_type_name(configs[first].get('peft_type'))}, which PEFT "
                "cannot load together; load each alone"
            )
        elif name != first and not get_method_traits(kind).loads_beside:
            yield f"adapter.{name}: is of type {_type_name(kind)} as adapter.{first} is, and PEFT cannot load two of them; load each alone"


def _type_name(peft_type: Any) -> str:
    # a string in a file, PEFT's enum in a loaded config
    return str(getattr(peft_type, "value", peft_type))
