"""Classifiers in company: one copy of the encoder, and for each adapter a head of its own.

PEFT can hold several heads on one module, but of one size only, and its mixed batches stack their outputs. So each adapter gets a task
model as transformers builds it, whose encoder layers are the same objects in all of them. Each adapter on disk therefore stays what
plain PEFT makes and loads; a switch is PEFT's own; in a mixed batch PEFT routes the rows through the shared encoder once, and each
row's own head answers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from peftrun.artifacts.classifier_head import ClassifierHead
from peftrun.models import base as models
from peftrun.models.base import LoadedBase


class SharedEncoder(torch.nn.Module):
    """PEFT models over one encoder, one an adapter; the active one answers. Speaks as a PeftModel does, where peftrun asks."""

    def __init__(self, members: dict[str, Any]) -> None:
        super().__init__()
        self.names = list(members)
        self.members = torch.nn.ModuleList(members.values())  # names may hold dots, which a ModuleDict refuses
        self.active_adapter = self.names[0]
        configs = self.peft_config
        for one in self.members:  # PEFT tells an adapter's tensors from others' by the names that it knows
            one.peft_config.update({name: config for name, config in configs.items() if name not in one.peft_config})

    def get_member(self, name: str) -> Any:
        """The PEFT model of one adapter."""
        return self.members[self.names.index(name)]

    def set_adapter(self, name: str) -> None:
        """Lets `name` answer from now on."""
        self.get_member(name).set_adapter(name)
        self.active_adapter = name

    @property
    def active_adapters(self) -> list[str]:
        """The adapter that answers."""
        return [self.active_adapter]

    @property
    def peft_config(self) -> dict[str, Any]:
        """PEFT's config of each adapter."""
        return {name: self.get_member(name).peft_config[name] for name in self.names}

    @property
    def config(self) -> Any:
        """The active task model's config: its labels are there."""
        return self.get_member(self.active_adapter).config

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.parameters()).device

    def save_pretrained(self, folder: str, selected_adapters: list[str], **more: Any) -> None:
        """As PEFT's, each adapter by its own model."""
        for name in selected_adapters:
            self.get_member(name).save_pretrained(folder, selected_adapters=[name], **more)

    def forward(self, **inputs: Any) -> Any:
        """The active adapter's output."""
        return self.get_member(self.active_adapter)(**inputs)

    @torch.inference_mode()
    def mixed(self, adapter_names: list[str], **inputs: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each row by its own adapter, after one pass of all rows through the encoder.

        Raises: ValueError: a name that is not loaded; PEFT refuses too where a method cannot mix (DoRA).
        """
        unknown = sorted(set(adapter_names) - set(self.names))
        if unknown:
            raise ValueError(f"adapter {unknown[0]!r} is not loaded; loaded: {', '.join(self.names)}")
        self.eval()
        widest = max(self.members, key=lambda one: sum(1 for _ in _get_encoder(one).parameters()))
        with widest.base_model._enable_peft_forward_hooks(adapter_names=adapter_names):
            hidden = _get_encoder(widest)(**inputs)
        found: list[Any] = [None] * len(adapter_names)
        for name in dict.fromkeys(adapter_names):
            rows = [row for row, wanted in enumerate(adapter_names) if wanted == name]
            own = {key: value[rows] for key, value in inputs.items()}
            with _reuse_encoding(_get_encoder(self.get_member(name)), _select_rows(hidden, rows)):
                logits = self.get_member(name)(**own).logits
            for row, values in zip(rows, logits, strict=True):
                found[row] = values
        return found


def add_classifier(base: LoadedBase, head: ClassifierHead) -> Any:
    """A task model with `head`, on the very layers of the base's encoder."""
    found, _ = models.load_classifier(base.folder, base.spec, head, base.device, base.model.dtype)
    found.name_or_path = base.name
    encoder = found.base_model
    for name, _ in list(encoder.named_children()):
        if getattr(base.model.base_model, name, None) is not None:
            setattr(encoder, name, getattr(base.model.base_model, name))
    return found


def find_peft_model(net: Any, name: str) -> Any:
    """The PEFT model that holds adapter `name`: `net` itself, or the one in company."""
    return net.get_member(name) if isinstance(net, SharedEncoder) else net


def _get_encoder(net: Any) -> Any:
    return net.get_base_model().base_model


def _select_rows(output: Any, rows: list[int]) -> Any:
    return type(output)(**{key: value[rows] for key, value in output.items() if isinstance(value, torch.Tensor)})


@contextmanager
def _reuse_encoding(encoder: Any, output: Any) -> Iterator[None]:
    """For as long as the block runs the encoder answers with `output`, computed before."""
    encoder.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del encoder.forward
