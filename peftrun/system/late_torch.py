"""torch where something of it is used, and not because a library names it. Light.

A tokenizer of transformers needs no torch, and yet loading one imports it (transformers 5.23): modules that every config imports begin with
`import torch` and use it in functions alone, and the one that checks configs takes the list of activations from the module that computes
them. That takes seconds, which a look at rows need not wait for.
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
    """Stands for torch in those modules until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get("torch") is self:
            del sys.modules["torch"]
        return getattr(import_module("torch"), name)


class _LazyActivations(Mapping[str, Any]):
    """transformers' own list, empty while torch is not there: it then checks no name against it."""

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
    """From here on this process loads tokenizers without torch; nothing changes where it is there already, or torchvision asks for it."""
    names = {"torch", ACTIVATIONS, *TORCH_IMPORTERS}
    spec = None if names & sys.modules.keys() or find_spec("torchvision") else find_spec("torch")
    if spec is None:
        return
    later, activations = _LazyTorch("torch"), ModuleType(ACTIVATIONS)
    later.__spec__, later.__file__ = spec, spec.origin
    vars(activations)["ACT2FN"] = _LazyActivations()
    stand_ins = {"torch": later, ACTIVATIONS: activations}
    sys.modules.update(stand_ins)
    try:
        for name in TORCH_IMPORTERS:
            with suppress(ImportError):  # another version of transformers has no such module
                import_module(name)
    finally:
        for name, one in stand_ins.items():
            if sys.modules.get(name) is one:
                del sys.modules[name]
