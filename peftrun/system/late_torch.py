"""Import torch when an attribute of it is used, rather than when a library imports it. Light.

Loading a transformers tokenizer imports torch without using it (transformers 5.23): modules that every config imports have `import torch` at
their top and use it inside functions only, and the one that validates configs takes the names of activations from the module that implements
them. That import takes seconds, which action=preview saves.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

ACTIVATIONS = "transformers.activations"
TORCH_IMPORTERS = ("transformers.modeling_rope_utils", "transformers.utils.type_validators")  # and what they import


class _LazyTorch(ModuleType):
    """Placeholder for torch in those modules; the first attribute access imports the real one."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get("torch") is self:
            del sys.modules["torch"]
        return getattr(import_module("torch"), name)


class _LazyActivations(Mapping[str, Any]):
    """transformers' ACT2FN; empty until torch is imported, and against an empty one transformers checks no name."""

    def __getitem__(self, name: str) -> Any:
        return self._get_activations()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._get_activations())

    def __len__(self) -> int:
        return len(self._get_activations())

    @staticmethod
    def _get_activations() -> Any:
        return import_module(ACTIVATIONS).ACT2FN if "torch" in sys.modules else {}


def defer_torch_import() -> None:
    """Lets this process load tokenizers without torch. Does nothing if torch is imported already, or torchvision (which needs it) is installed."""
    names = {"torch", ACTIVATIONS, *TORCH_IMPORTERS}
    spec = None if names & sys.modules.keys() or find_spec("torchvision") else find_spec("torch")
    if spec is None:
        return
    lazy_torch, activations = _LazyTorch("torch"), ModuleType(ACTIVATIONS)
    lazy_torch.__spec__, lazy_torch.__file__ = spec, spec.origin
    vars(activations)["ACT2FN"] = _LazyActivations()
    placeholders = {"torch": lazy_torch, ACTIVATIONS: activations}
    sys.modules.update(placeholders)
    try:
        for name in TORCH_IMPORTERS:
            with suppress(ImportError):  # other versions of transformers lack this module
                import_module(name)
    finally:  # those modules keep their references; everything imported later gets the real torch
        for name, module in placeholders.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
