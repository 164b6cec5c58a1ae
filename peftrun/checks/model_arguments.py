"""Rules for `model.arguments`: fields of the base model's config, and arguments of transformers' loader. Light."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from peftrun.artifacts import base_location
from peftrun.checks.tasks import MODELLESS
from peftrun.checks.unknown_keys import find_close_match, quote_for_shell
from peftrun.checks.validation import explain_type_errors
from peftrun.config.schema import model_fields
from peftrun.config.schema.library_fields import build_mapping_type
from peftrun.formatting import format_value
from peftrun.io import atomic_files

Lines = Iterator[str]
COUNTED = re.compile(r"(max|num|n)_|.*_(size|window)$")  # fields that count something


def check_arguments(model: Any, action: Any) -> Lines:
    """Those of a base model whose config.json is on this disk; for others this is checked when it is loaded."""
    if not model.arguments or action.name in MODELLESS:
        return
    file = base_location.find_base_config(model)
    if file is not None:
        yield from explain_arguments(model.arguments, atomic_files.read_json(file))
    else:
        yield from (_explain_refused(name, value, {}) for name, value in model.arguments.items() if _is_refused(name))


def explain_arguments(arguments: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """One line for each argument that this kind of model does not have, or not of this type. Args: config: its config.json."""
    accepted = model_fields.get_accepted_arguments(config)
    types = {name: accepted[name] for name in arguments if name in accepted}
    lines = [_explain_refused(name, value, config) for name, value in arguments.items() if name not in types]
    lines += [
        f"model.arguments.{name}={value}: must be 1 or more"
        for name, value in arguments.items()
        if COUNTED.match(name) and isinstance(value, int | float) and value < 0
    ]
    mapping = build_mapping_type("Model", {"arguments": build_mapping_type("Arguments", types)})
    return lines + explain_type_errors("model", {"arguments": {name: arguments[name] for name in types}}, mapping)


def _is_refused(name: str) -> bool:
    return name in model_fields.INSTEAD or model_fields.explain_not_offered(name) is not None


def _explain_refused(name: str, value: Any, config: dict[str, Any]) -> str:
    """Why an argument is not taken: it has a key of its own, cannot be set, or does not exist."""
    key, shown = f"model.arguments.{name}", "…" if name == "token" else format_value(value)
    instead, reason = model_fields.INSTEAD.get(name), model_fields.explain_not_offered(name)
    if instead:
        return f"{key}={shown}: is set otherwise; type {instead.replace('VALUE', shown)}"
    if reason:
        return f"{key}={shown}: cannot be set here: {reason}; omit it"
    known = model_fields.get_accepted_arguments(config)
    nearest, kind = find_close_match(name, known), config.get("model_type")
    if nearest is None:
        return f"{key}={shown}: a {kind} model has no such field, nor transformers' loader; fields: {', '.join(sorted(known))}"
    return f"{key}={shown}: a {kind} model has no such field; did you mean {nearest}? type {quote_for_shell(f'model.arguments.{nearest}={shown}')}"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [(("model", "action"), check_arguments)]
