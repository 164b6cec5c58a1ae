"""What an `adapter_config.json` says of how the adapter may be used: whether loading makes the model that was saved, and who can share its base.

Some initialisations move a part of the base's weights into the adapter. peftrun converts such adapters to plain LoRA when it saves them;
unconverted ones belong to a base that is no longer the one on disk. Light.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
CONVERTED = ("pissa", "olora", "corda", "lora_ga")  # initialisations whose adapters peftrun converts
LEAVE_BASE = ("gaussian", "eva", "orthogonal", "mica")  # those that leave the base as it is; all others change it
REPEATED = ("pissa", "olora")  # those that PEFT repeats exactly when it loads the adapter
NEED_MORE = {  # types that answer with something beside the text
    "POLY": "needs the number of its task with each row",
    "MULTITASK_PROMPT_TUNING": "needs the number of its task with each row",
    "XLORA": "needs other adapters, each under a path of its own",
}
CONVERT = "save it again where it was trained: model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=UNTRAINED_ADAPTER)"


def changing_init(config: Config) -> str | None:
    """The adapter's `init_lora_weights` if it is one that changes the base's weights, else None."""
    init = config.get("init_lora_weights", True)
    return init if isinstance(init, str) and init.lower() not in LEAVE_BASE else None


def not_loadable(config: Config) -> str | None:
    """Why loading this adapter cannot make the model that was saved; None if it can."""
    kind = _text(config.get("peft_type"))
    if kind in NEED_MORE:
        return f"is of type {kind}, which {NEED_MORE[kind]}, and peftrun gives none; use it with PEFT itself"
    init = changing_init(config)
    if init is None or init.lower() in REPEATED:
        return None
    return (
        f"was started with init_lora_weights={init}, which changed the base's weights in a way that loading cannot repeat, and was not "
        f"converted; {CONVERT}"
    )


def taken_from_base(config: Config) -> str | None:
    """What PEFT takes out of the base's weights when it puts this adapter on them; None if nothing."""
    init = changing_init(config)
    if init is not None:
        return f"takes part of the base's weights away (init_lora_weights={init}, not converted)"
    if config.get("kasa_config"):
        return "takes the smallest directions out of the base's weights (kasa_config)"
    return None


def needs_weights(config: Config) -> str | None:
    """Why PEFT cannot put this adapter on a base whose weights are not in memory; None if it can."""
    taken = taken_from_base(config)
    if taken:
        return f"this adapter {taken}"
    if config.get("save_projection") is False:
        return "this adapter's projections are not in its file (save_projection=false), so PEFT draws them again"
    if config.get("monteclora_config"):
        return "PEFT makes this adapter's samplers with the weights that they vary (monteclora_config)"
    return None


def change_to_base(config: Config) -> str | None:
    """What loading this adapter does to the base itself, so that nobody else can answer from it; None if nothing."""
    taken, bias = taken_from_base(config), config.get("bias") or "none"
    if taken:
        return taken
    if bias != "none":
        return f"replaces the base's biases (bias={bias})"
    if config.get("layer_replication"):
        return "repeats layers of the base (layer_replication)"
    return None


def remedy(config: Config) -> str:
    """What to do with an adapter that changes its base."""
    if changing_init(config):
        return f"load it alone, or {CONVERT}"
    return (
        "load it alone"
        if config.get("layer_replication")
        else "load it alone, or merge it (peftrun action=merge adapter=…)"
    )


def together(configs: Mapping[str, Config]) -> Iterator[str]:
    """One line for each adapter that cannot be loaded with the others."""
    if len(configs) < 2:
        return
    first = next(iter(configs))
    for name, config in configs.items():
        change, kind = change_to_base(config), config.get("peft_type")
        if change:
            yield f"adapter.{name}: {change}, so the others would answer from a changed base; {remedy(config)}"
        elif kind != configs[first].get("peft_type"):
            yield (
                f"adapter.{name}: is of type {_text(kind)} and adapter.{first} of type {_text(configs[first].get('peft_type'))}, which PEFT "
                "cannot load together; load each alone"
            )
        elif name != first and _text(kind) == "TRAINABLE_TOKENS":
            yield f"adapter.{name}: is of type TRAINABLE_TOKENS as adapter.{first} is, and PEFT cannot load two of them; load each alone"


def _text(kind: Any) -> str:
    return str(getattr(kind, "value", kind))
