"""Whether a method's target modules exist in a model, from the model's `config.json` only: no weights, no download, no conversion."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from peftrun.adapters import target_modules
from peftrun.artifacts import base_location
from peftrun.artifacts.classifier_head import ClassifierHead
from peftrun.config.schema.lora import NoAdapter
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.models import base as base_models


def check_targets(
    spec: ModelSpec, methods: list[Any], head: ClassifierHead | None = None
) -> list[Exception | None] | None:
    """The error (or None) of each of `methods`, a list of `lora` groups, on the model of `spec`; None if its config is not on this disk.

    Args: head: a classifier's.
    """
    try:
        with _locate_config(spec) as folder:
            if folder is None:
                return None
            net = base_models.build_empty(folder, spec, head)
    except (ValueError, OSError, ImportError, KeyError) as error:
        fault = ModelError(
            f"model.name_or_path={spec.name_or_path}: cannot be built ({' '.join(str(error).split())[:200]})"
        )
        return [fault for _ in methods]
    errors: list[Exception | None] = []
    for method in methods:
        try:
            if not isinstance(method, NoAdapter):
                target_modules.check_target_modules(net, method)
            errors.append(None)
        except Exception as error:  # a ConfigError, or any error of an unknown architecture
            errors.append(error)
    return errors


@contextmanager
def _locate_config(spec: ModelSpec) -> Iterator[Path | None]:
    """The folder with the model's config: its own, a temporary one with the config of a GGUF file, or one in the Hub's cache."""
    path = base_location.resolve_model_path(spec)
    if path.suffix == ".gguf" and path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            AutoConfig.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
            yield Path(folder)
    else:
        file = base_location.find_base_config(spec)
        yield file.parent if file else None
