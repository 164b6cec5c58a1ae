"""Several classifiers on one copy of the encoder, each with its own head.

PEFT can hold several heads on one module, but of one size only, and its mixed batches stack their outputs. So each adapter gets its own
transformers task model, and all of these share the encoder's layers, as the same objects. Adapters on disk are therefore those of plain
PEFT, and so is switching. In a mixed batch PEFT routes the rows through the shared encoder once, then each row goes through its own head.
"""

from typing import Any

import torch

from peftrun.artifacts.classifier_head import ClassifierHead
from peftrun.compat.peft import route_with_peft
from peftrun.models import base as models
from peftrun.models.base import LoadedBase


class SharedEncoder(torch.nn.Module):
    """PEFT models that share an encoder, one per adapter. Has the parts of PeftModel's interface that peftrun uses."""

    def __init__(self, members: dict[str, Any]) -> None:
        super().__init__()
        self.names = list(members)
        self.members = torch.nn.ModuleList(members.values())  # no ModuleDict, which refuses names with dots
        self.active_adapter = self.names[0]
        configs = self.peft_config
        # PEFT separates the adapters' tensors in the shared layers by the names in peft_config, so each needs all of them
        for member in self.members:
            member.peft_config.update(
                {name: config for name, config in configs.items() if name not in member.peft_config}
            )

    def get_member(self, name: str) -> Any:
        """The PEFT model of one adapter."""
        return self.members[self.names.index(name)]

    def set_adapter(self, name: str) -> None:
        """Makes `name` the active adapter."""
        self.get_member(name).set_adapter(name)
        self.active_adapter = name

    @property
    def active_adapters(self) -> list[str]:
        """The active adapter, in a list as PEFT's."""
        return [self.active_adapter]

    @property
    def peft_config(self) -> dict[str, Any]:
        """Adapter → PEFT's config."""
        return {name: self.get_member(name).peft_config[name] for name in self.names}

    @property
    def config(self) -> Any:
        """The config of the active adapter's task model, with its labels."""
        return self.get_member(self.active_adapter).config

    @property
    def device(self) -> torch.device:
        """The device of the encoder."""
        return next(self.parameters()).device

    def save_pretrained(self, folder: str, selected_adapters: list[str], **kwargs: Any) -> None:
        """As PEFT's, each adapter by its own model."""
        for name in selected_adapters:
            self.get_member(name).save_pretrained(folder, selected_adapters=[name], **kwargs)

    def forward(self, **inputs: Any) -> Any:
        """The active adapter's output."""
        return self.get_member(self.active_adapter)(**inputs)

    @torch.inference_mode()
    def mixed(self, adapter_names: list[str], **inputs: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each row, (labels,) or (T, labels), by its own adapter, after one pass of all rows through the encoder.

        Args: adapter_names: of each row. inputs: (B, T) each.
        Raises: ValueError: an adapter that is not loaded, or PEFT refuses to mix its method (DoRA).
        """
        unknown = sorted(set(adapter_names) - set(self.names))
        if unknown:
            raise ValueError(f"adapter {unknown[0]!r} is not loaded; loaded: {', '.join(self.names)}")
        self.eval()
        # a task model may lack a part of the encoder that others have, such as the pooler
        widest = max(self.members, key=lambda member: sum(1 for _ in _get_encoder(member).parameters()))
        with route_with_peft(widest, adapter_names):
            output = _get_encoder(widest)(**inputs)  # last_hidden_state: (B, T, H)
        results: list[Any] = [None] * len(adapter_names)
        for name in dict.fromkeys(adapter_names):
            rows = [row for row, adapter in enumerate(adapter_names) if adapter == name]
            row_inputs = {key: value[rows] for key, value in inputs.items()}
            tensors = {key: value[rows] for key, value in output.items() if isinstance(value, torch.Tensor)}
            encoder, encoded = _get_encoder(self.get_member(name)), type(output)(**tensors)
            encoder.forward = lambda *_, encoded=encoded, **__: encoded  # instead of computing it again
            try:
                logits = self.get_member(name)(**row_inputs).logits  # (rows, labels) or (rows, T, labels)
            finally:
                del encoder.forward
            for row, values in zip(rows, logits, strict=True):
                results[row] = values
        return results


def add_classifier(base: LoadedBase, head: ClassifierHead) -> Any:
    """A task model with `head` that shares the layers of the base model's encoder."""
    model, _ = models.load_classifier(base.folder, base.spec, head, base.device, base.model.dtype)
    model.name_or_path = base.name
    encoder = model.base_model
    for name, _ in list(encoder.named_children()):
        if getattr(base.model.base_model, name, None) is not None:  # a pooler may exist in one of the two only
            setattr(encoder, name, getattr(base.model.base_model, name))
    return model


def find_peft_model(net: Any, name: str) -> Any:
    """The PEFT model that holds adapter `name`: `net` itself, or a member of the shared encoder."""
    return net.get_member(name) if isinstance(net, SharedEncoder) else net


def _get_encoder(net: Any) -> Any:
    return net.get_base_model().base_model
