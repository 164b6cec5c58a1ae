"""Rows of one batch, each answered by its own adapter: through one pass where that is right, else in turn.

Rows of plain LoRA adapters pass the layers as `routing` has it, others as PEFT routes them. PEFT refuses DoRA, and of what an adapter trained in full (biases,
`modules_to_save`) it keeps one copy in the base's place or none by row: such adapters answer their rows in batches of their own.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft import PeftModel

from peftrun.adapters.row_routing import AdapterRouter
from peftrun.artifacts import adapter_rules
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.errors import AdapterError

AdapterNames = Sequence[str | None]  # an adapter, BASE, or None: the active one
EXCLUSIVE_FIELDS = (
    "use_dora",
    "modules_to_save",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "use_bdlora",
)
PEFT_BASE_NAME = "__base__"  # PEFT's word for BASE


def why_not_mixable(net: Any, names: AdapterNames) -> str | None:
    """Why these rows cannot share a batch; None if they can.

    Raises: AdapterError: a row asks for the base, which an adapter has changed.
    """
    if not isinstance(net, PeftModel):
        return None
    _check_base_unchanged(net, names)
    configs = dict(net.peft_config)
    return next(
        (reason for reason in (why_exclusive(name, config) for name, config in configs.items()) if reason), None
    )


def _check_base_unchanged(net: Any, names: AdapterNames) -> None:
    """Raises: AdapterError: a row asks for the base, and an adapter has changed it."""
    for name, config in net.peft_config.items() if BASE_ADAPTER_NAME in names else ():
        change = adapter_rules.describe_base_change(vars(config))
        if change:
            raise AdapterError(
                f"adapter.{name}: {change}, so the base cannot answer beside it; omit rows of {BASE_ADAPTER_NAME}"
            )


def why_exclusive(name: str, config: Any) -> str | None:
    """Why rows of the adapter with PEFT's `config` cannot share a batch with those of others; None if they can."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        return f"adapter {name} is of type {kind}"
    own = next((key for key in EXCLUSIVE_FIELDS if getattr(config, key, None)), None)
    return f"adapter {name} has {own}" if own else None


def group_rows(net: Any, names: AdapterNames) -> list[list[int]]:
    """Numbers of the rows that may share batches: all, or those of each adapter.

    Raises: AdapterError: a row asks for the base, which an adapter has changed.
    """
    if isinstance(net, PeftModel):
        _check_base_unchanged(net, names)
    if len(set(names)) > 1 and why_not_mixable(net, names):
        return [[row for row, name in enumerate(names) if name == wanted] for wanted in dict.fromkeys(names)]
    return [list(range(len(names)))]


@contextmanager
def route_rows(net: Any, names: AdapterNames, router: AdapterRouter | None = None) -> Iterator[None]:
    """For as long as the block runs, row number i of every batch that passes `net` is answered by `names[i]`.

    A `router` of this model makes one block after another cheap: it remembers, and the active adapter stays as it is.
    """
    if not isinstance(net, PeftModel) or set(names) == {None}:
        yield
        return
    routed = [PEFT_BASE_NAME if name == BASE_ADAPTER_NAME else name or net.active_adapter for name in names]
    own = set(routed) - {PEFT_BASE_NAME}
    plain = not any(why_exclusive(name, net.peft_config[name]) for name in own)
    if len(set(routed)) == 1 and not (router and plain and router.can_route(own)):
        with _activate_adapter(net, routed[0]):
            yield
    else:
        with _route_layers(net, routed, router or AdapterRouter(net)):
            yield


@contextmanager
def _activate_adapter(net: Any, name: str) -> Iterator[None]:
    if name == PEFT_BASE_NAME:
        with net.disable_adapter():
            yield
        return
    before = net.active_adapter
    net.set_adapter(name)
    try:
        yield
    finally:
        net.set_adapter(before)


@contextmanager
def _route_layers(net: Any, names: list[str], router: AdapterRouter) -> Iterator[None]:
    with ExitStack() as entered:
        entered.enter_context(router.disable_saved_modules())
        if router.can_route(set(names) - {PEFT_BASE_NAME}):
            entered.enter_context(router.route_rows(names))
        else:  # layers look at the active adapter first
            entered.enter_context(_activate_adapter(net, next(name for name in names if name != PEFT_BASE_NAME)))
            entered.enter_context(net.base_model._enable_peft_forward_hooks(adapter_names=names))
        yield
