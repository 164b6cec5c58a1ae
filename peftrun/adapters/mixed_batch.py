"""Batches whose rows use different adapters: in one pass where the adapters allow it, otherwise one adapter after another.

Rows of plain LoRA adapters are routed by `row_routing`, others by PEFT. PEFT refuses DoRA in a mixed batch, and fully trained parts
(biases, `modules_to_save`) replace the base model's for all rows or are not routed by row: such adapters get batches of their own.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft import PeftModel

from peftrun.adapters.row_routing import AdapterRouter
from peftrun.artifacts import adapter_rules
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.compat.peft import route_with_peft
from peftrun.errors import AdapterError

AdapterNames = Sequence[str | None]  # of each row: an adapter, BASE_ADAPTER_NAME, or None: the active one
EXCLUSIVE_FIELDS = (
    "use_dora",
    "modules_to_save",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "use_bdlora",
)
PEFT_BASE_NAME = "__base__"  # PEFT's own name for BASE_ADAPTER_NAME


def why_not_mixable(net: Any, names: AdapterNames) -> str | None:
    """Why these rows cannot share a batch; None if they can.

    Raises: AdapterError: a row uses the base model, which an adapter has changed.
    """
    if not isinstance(net, PeftModel):
        return None
    _check_base_unchanged(net, names)
    return next(filter(None, (why_exclusive(name, config) for name, config in net.peft_config.items())), None)


def _check_base_unchanged(net: Any, names: AdapterNames) -> None:
    """Raises: AdapterError: a row uses the base model, and an adapter has changed it."""
    for name, config in net.peft_config.items() if BASE_ADAPTER_NAME in names else ():
        change = adapter_rules.describe_base_change(vars(config))
        if change:
            raise AdapterError(
                f"adapter.{name}: {change}, so the base model cannot be used with it; omit rows of {BASE_ADAPTER_NAME}"
            )


def why_exclusive(name: str, config: Any) -> str | None:
    """Why rows of the adapter with PEFT's `config` cannot share a batch with rows of others; None if they can."""
    peft_type = getattr(config.peft_type, "value", config.peft_type)
    if peft_type != "LORA":
        return f"adapter {name} is of type {peft_type}"
    feature = next((key for key in EXCLUSIVE_FIELDS if getattr(config, key, None)), None)
    return f"adapter {name} has {feature}" if feature else None


def group_rows(net: Any, names: AdapterNames) -> list[list[int]]:
    """Indices of rows that may share batches: one group of all rows, or one group per adapter.

    Raises: AdapterError: a row uses the base model, which an adapter has changed.
    """
    if isinstance(net, PeftModel):
        _check_base_unchanged(net, names)
    if len(set(names)) > 1 and why_not_mixable(net, names):
        return [[row for row, name in enumerate(names) if name == adapter] for adapter in dict.fromkeys(names)]
    return [list(range(len(names)))]


@contextmanager
def route_rows(net: Any, names: AdapterNames, router: AdapterRouter | None = None) -> Iterator[None]:
    """Within the block, row i of every batch passed to `net` goes through adapter `names[i]`.

    With a `router` of this model many blocks in a row are cheap: its stacks are reused, and the active adapter need not be switched.
    """
    if not isinstance(net, PeftModel) or set(names) == {None}:
        yield
        return
    peft_names = [PEFT_BASE_NAME if name == BASE_ADAPTER_NAME else name or net.active_adapter for name in names]
    adapters = set(peft_names) - {PEFT_BASE_NAME}
    plain = not any(why_exclusive(name, net.peft_config[name]) for name in adapters)
    if len(set(peft_names)) == 1 and not (router and plain and router.can_route(adapters)):
        with _activate_adapter(net, peft_names[0]):
            yield
        return
    router = router or AdapterRouter(net)
    with ExitStack() as stack:
        stack.enter_context(router.disable_saved_modules())
        if router.can_route(adapters):
            stack.enter_context(router.route_rows(peft_names))
        else:  # PEFT's layers look at the active adapter before they route
            first = next(name for name in peft_names if name != PEFT_BASE_NAME)
            stack.enter_context(_activate_adapter(net, first))
            stack.enter_context(route_with_peft(net, peft_names))
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
