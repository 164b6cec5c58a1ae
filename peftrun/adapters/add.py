"""Adds saved adapters to a base model, and explains why one cannot be added."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from peftrun.adapters import offload, peft_config, probes, saved_base, shared_encoder, trainable_tokens
from peftrun.artifacts import adapter_folder, adapter_rules, classifier_head
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.errors import AdapterError
from peftrun.models.base import LoadedBase
from peftrun.system.versions import get_version

# Parts of PEFT's messages when modules or shapes differ from those of the base model that the adapter was made for.
OTHER_BASE_ERRORS = ("not found in the base model", "size mismatch", "No modules were targeted", "shape")


def check_adapter_rules(base: LoadedBase, adapters: Mapping[str, AdapterRef]) -> None:
    """Raises: AdapterError: loading one of them cannot restore the saved model, or it cannot share the base model with the others."""
    _check_adapter_names(base.model, list(adapters))
    lines = [
        f"{adapter.option}: {reason}"
        for adapter in adapters.values()
        if (reason := adapter_rules.why_not_loadable(adapter.config))
    ]
    lines = lines or list(
        adapter_rules.check_loadable_together({name: adapter.config for name, adapter in adapters.items()})
    )
    if lines:
        raise AdapterError(*lines)


def _check_adapter_names(host: Any, names: list[str]) -> None:
    """Raises: AdapterError: PEFT selects an adapter's tensors by its name, which also occurs in names of other tensors."""
    model_parts = {part for key, _ in host.named_parameters() for part in key.split(".")}
    for name in names:
        adapter_folder.check_adapter_name(name)
        prefixed = name.startswith(tuple(filter(None, PEFT_TYPE_TO_PREFIX_MAPPING.values())))
        # a single adapter's tensors are all of the adapter's, so most names are unambiguous there
        ambiguous = len(names) > 1 and (name in model_parts or prefixed)
        if ambiguous or hasattr(torch.nn.ModuleDict(), name):  # a ModuleDict refuses the names of its attributes
            raise AdapterError(adapter_folder.explain_taken_name(name))


def add_adapters(base: LoadedBase, adapters: Mapping[str, AdapterRef]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The base model with all adapters, and name → the base model's logits on the probes, (tokens, vocabulary)."""
    model, plain = None, {}
    for name, adapter in adapters.items():  # before the first adapter changes the model
        call = adapter.config.get("alora_invocation_tokens")
        plain[name] = probes.compute_probe_logits(base.model, base.tokenizer, call)
    for name, adapter in adapters.items():
        if classifier_head.read_adapter_head(adapter):
            raise AdapterError(
                f"adapter.{name}={adapter.label}: is a classifier's and cannot be loaded together with a language model's"
            )
        model = add_adapter(base, base.model, model, adapter)
    return model, plain


def add_classifiers(base: LoadedBase, adapters: Mapping[str, AdapterRef]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The same for classifiers: several as a SharedEncoder, a single one as a plain PeftModel. Logits are (probes, labels)."""
    hosts: dict[str, Any] = {}
    for name, adapter in adapters.items():
        head = classifier_head.read_adapter_head(adapter)
        if head is None:
            raise AdapterError(
                f"adapter.{name}={adapter.label}: is no classifier's and cannot be loaded together with one"
            )
        # the first adapter with the base's own head takes the loaded model; each other one gets a model on the same encoder
        unused = head == base.head and not any(host is base.model for host in hosts.values())
        hosts[name] = base.model if unused else shared_encoder.add_classifier(base, head)
    plain = {name: probes.compute_probe_logits(host, base.tokenizer) for name, host in hosts.items()}
    members = {name: add_adapter(base, host, None, adapters[name]) for name, host in hosts.items()}
    return (shared_encoder.SharedEncoder(members) if len(members) > 1 else next(iter(members.values()))), plain


def add_adapter(base: LoadedBase, host: Any, model: Any, adapter: AdapterRef, config: Any = None) -> Any:
    """`model` (None: a new PeftModel around `host`) with one more adapter.

    Args: config: PEFT's config of the adapter; None: its own, with all weights frozen.
    Raises: AdapterError: it does not fit the base model.
    """
    name = adapter.name
    try:
        if config is None:
            config = peft_config.read_peft_config(adapter)
            config.inference_mode = True
        if any(parameter.is_meta for parameter in host.parameters()):  # offloaded
            return offload.add_to_offloaded(host, model, config, adapter)
        if model is None:
            model = get_peft_model(host, config, adapter_name=name)
        elif name not in model.peft_config:
            model.add_adapter(name, config)
        with trainable_tokens.skip_adapters_without_tokens(model, name), saved_base.preserve_base(model, adapter):
            model.load_adapter(str(adapter.folder), name, torch_device="cpu")
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        others = [other for other in getattr(model, "peft_config", {}) if other != name]
        if any(words in str(error) for words in OTHER_BASE_ERRORS):
            line = f"{adapter.label}: does not fit {base.name} ({reason}); choose the base it was made for"
        elif others:
            key = f"adapter.{name}={adapter.label}"
            line = f"{key}: PEFT cannot load it together with {', '.join(others)} ({reason}); load it alone"
        else:
            line = f"{adapter.option}: PEFT {get_version('peft')} cannot load it on {base.name} ({reason})"
        raise AdapterError(line) from error
    return model
