"""Rows of one batch, each answered by its own adapter: through one pass where that is right, else in turn.

Rows of plain LoRA adapters pass the layers as `routing` has it, others as PEFT routes them. PEFT refuses DoRA, and of what an adapter trained in full (biases,
`modules_to_save`) it keeps one copy in the base's place or none by row: such adapters answer their rows in batches of their own.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft import PeftModel

from peftrun.adapters.row_routing import Router
from peftrun.artifacts import adapter_rules
from peftrun.artifacts.prompts_file import BASE
from peftrun.errors import AdapterError

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

    Raises: AdapterError: a row asks for the base, which an adapter has changed.
    """
    if not isinstance(net, PeftModel):
        return None
    _check_base(net, names)
    configs = dict(net.peft_config)
    return next((reason for reason in (alone(name, config) for name, config in configs.items()) if reason), None)


def _check_base(net: Any, names: Names) -> None:
    """Raises: AdapterError: a row asks for the base, and an adapter has changed it."""
    for name, config in net.peft_config.items() if BASE in names else ():
        change = adapter_rules.change_to_base(vars(config))
        if change:
            raise AdapterError(f"adapter.{name}: {change}, so the base cannot answer beside it; omit rows of {BASE}")


def alone(name: str, config: Any) -> str | None:
    """Why rows of the adapter with PEFT's `config` cannot share a batch with those of others; None if they can."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        return f"adapter {name} is of type {kind}"
    own = next((key for key in APART if getattr(config, key, None)), None)
    return f"adapter {name} has {own}" if own else None


def groups(net: Any, names: Names) -> list[list[int]]:
    """Numbers of the rows that may share batches: all, or those of each adapter.

    Raises: AdapterError: a row asks for the base, which an adapter has changed.
    """
    if isinstance(net, PeftModel):
        _check_base(net, names)
    if len(set(names)) > 1 and cannot(net, names):
        return [[row for row, name in enumerate(names) if name == wanted] for wanted in dict.fromkeys(names)]
    return [list(range(len(names)))]


@contextmanager
def answering(net: Any, names: Names, router: Router | None = None) -> Iterator[None]:
    """For as long as the block runs, row number i of every batch that passes `net` is answered by `names[i]`.

    A `router` of this model makes one block after another cheap: it remembers, and the active adapter stays as it is.
    """
    if not isinstance(net, PeftModel) or set(names) == {None}:
        yield
        return
    routed = [PLAIN if name == BASE else name or net.active_adapter for name in names]
    own = set(routed) - {PLAIN}
    plain = not any(alone(name, net.peft_config[name]) for name in own)
    if len(set(routed)) == 1 and not (router and plain and router.fits(own)):
        with _active(net, routed[0]):
            yield
    else:
        with _routed(net, routed, router or Router(net)):
            yield


@contextmanager
def _active(net: Any, name: str) -> Iterator[None]:
    if name == PLAIN:
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
def _routed(net: Any, names: list[str], router: Router) -> Iterator[None]:
    with ExitStack() as entered:
        entered.enter_context(router.modules_of_the_base())
        if router.fits(set(names) - {PLAIN}):
            entered.enter_context(router.answering(names))
        else:  # layers look at the active adapter first
            entered.enter_context(_active(net, next(name for name in names if name != PLAIN)))
            entered.enter_context(net.base_model._enable_peft_forward_hooks(adapter_names=names))
        yield
