"""The base model's config, with the values of `model.arguments` laid over it. Reads no weights and imports no torch."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from peftrun.checks import model_arguments
from peftrun.config.schema import model_fields
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ConfigError, ModelError
from peftrun.formatting import format_value


def load_config(folder: Path, spec: ModelSpec, **labels: Any) -> Any:
    """The config of the model in `folder`. Args: labels: `id2label` and `label2id` of a classifier.

    Raises: ConfigError, ModelError: see `apply_arguments`.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **labels)
    return apply_arguments(config, spec)


def apply_arguments(config: Any, spec: ModelSpec) -> Any:
    """The config with the values of `model.arguments`. A mapping is laid over the model's own: what it does not name stays.

    Raises: ConfigError: this kind of model has no such field. ModelError: its config refuses the value.
    """
    if not spec.arguments:
        return config
    own = config.to_dict()
    problems = model_arguments.explain_arguments(spec.arguments, own)
    if problems:
        raise ConfigError(*problems)
    values = {name: value for name, value in spec.arguments.items() if name not in model_fields.LOADER}
    laid = {name: own[name] | value if _are_mappings(own.get(name), value) else value for name, value in values.items()}
    with _collect_rope_warnings() as usual:
        type(config).from_dict(own)
    with explain_refused_arguments(spec, config.model_type), _collect_rope_warnings() as warned:
        changed = type(config).from_dict(own | laid)
        if reasons := [text for text in warned if text not in usual]:
            raise ValueError("; ".join(reasons))
    changed.name_or_path = config.name_or_path
    return changed


@contextmanager
def explain_refused_arguments(spec: ModelSpec, model_type: str) -> Iterator[None]:
    """Raises: ModelError: within the block, where values of `model.arguments` are set, transformers raised an error of its own."""
    try:
        yield
    except Exception as error:  # each class has its own checks, and its own errors
        if not spec.arguments:
            raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model.arguments={format_value(spec.arguments)}: a {model_type} model refuses it ({reason}); correct the value, or omit it"
        ) from error


@contextmanager
def _collect_rope_warnings() -> Iterator[list[str]]:
    """What transformers logs of rotary embeddings within the block: it warns of values that no model can compute with, and goes on."""
    texts: list[str] = []
    logger, handler = logging.getLogger("transformers.modeling_rope_utils"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate, logger.propagate = logger.level, logger.propagate, False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def get_loader_arguments(spec: ModelSpec) -> dict[str, Any]:
    """The arguments of `from_pretrained` itself in `model.arguments`."""
    return {name: value for name, value in (spec.arguments or {}).items() if name in model_fields.LOADER}


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)
