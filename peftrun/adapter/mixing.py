"""Rows of one batch, each answered by its own adapter: through PEFT's own routing where that is right, else in turn.

PEFT routes rows of one batch to LoRA layers. It refuses DoRA, and of what an adapter trained in full (biases,
`modules_to_save`) it keeps one copy in the base's place or none by row: such adapters answer their rows in batches of their own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper

from peftrun.errors import AdapterError
from peftrun.prompts import BASE

Names = Sequence[str | None]  # an adapter, BASE, or None: the active one
APART = (
    "use_dora",
    "modules_to_save",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "use_bdlora",
)
PLAIN = "__base__"  # PEFT's word for BASE


def cannot(net: Any, names: Names) -> str | None:
    """Why these rows cannot share a batch; None if they can.

    Raises: AdapterError: a row asks for the base, which an adapter with trained biases has changed.
    """
    if not isinstance(net, PeftModel):
        return None
    configs = dict(net.peft_config)
    biased = [name for name, config in configs.items() if getattr(config, "bias", "none") != "none"]
    if biased and BASE in names:
        raise AdapterError(
            f"adapter.{biased[0]}: has trained the base's biases, so the base cannot answer beside it; omit rows of {BASE}"
        )
    return next((reason for reason in (alone(name, config) for name, config in configs.items()) if reason), None)


def alone(name: str, config: Any) -> str | None:
    """Why rows of the adapter with PEFT's `config` cannot share a batch with those of others; None if they can."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        return f"adapter {name} is of type {kind}"
    own = next((key for key in APART if getattr(config, key, None)), None)
    return f"adapter {name} has {own}" if own else None


def groups(net: Any, names: Names) -> list[list[int]]:
    """Numbers of the rows that may share batches: all, or those of each adapter."""
    if len(set(names)) > 1 and cannot(net, names):
        return [[row for row, name in enumerate(names) if name == wanted] for wanted in dict.fromkeys(names)]
    return [list(range(len(names)))]


@contextmanager
def answering(net: Any, names: Names) -> Iterator[None]:
    """For as long as the block runs, row number i of every batch that passes `net` is answered by `names[i]`."""
    if not isinstance(net, PeftModel) or set(names) == {None}:
        yield
    elif set(names) == {BASE}:
        with net.disable_adapter():
            yield
    elif len(set(names)) == 1:
        before = net.active_adapter
        net.set_adapter(names[0])
        try:
            yield
        finally:
            net.set_adapter(before)
    else:
        routed = [PLAIN if name == BASE else name or net.active_adapter for name in names]
        with _modules_of_the_base(net), net.base_model._enable_peft_forward_hooks(adapter_names=routed):
            yield


@contextmanager
def _modules_of_the_base(net: Any) -> Iterator[None]:
    """Where rows are mixed nobody has saved modules or tokens in full: other adapters' copies of these would be asked for theirs."""
    wrappers = [one for one in net.modules() if isinstance(one, AuxiliaryTrainingWrapper) and not one.disable_adapters]
    for one in wrappers:
        one.enable_adapters(False)
    try:
        yield
    finally:
        for one in wrappers:
            one.enable_adapters(True)
