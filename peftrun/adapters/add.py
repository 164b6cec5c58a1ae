"""Adapters put on a base: which may be, and why one does not go."""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from peftrun.adapters import offload, peft_config, probes, saved_base, shared_encoder, trainable_tokens
from peftrun.artifacts import adapter_folder, adapter_rules, classifier_head
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.errors import AdapterError
from peftrun.io.atomic_files import read_json
from peftrun.models.base import LoadedBase
from peftrun.system.versions import get_version

# What PEFT says where modules or shapes are not those of the base that the adapter was made for.
OTHER_BASE_ERRORS = ("not found in the base model", "size mismatch", "No modules were targeted", "shape")


def check_adapter_rules(base: LoadedBase, folders: dict[str, Path]) -> None:
    """Raises: AdapterError: loading one of them cannot make the model that was saved, or it cannot share the base with the others."""
    _check_adapter_names(base.model, list(folders))
    configs = {name: read_json(folder / ADAPTER_CONFIG) for name, folder in folders.items()}
    reasons = {name: adapter_rules.why_not_loadable(config) for name, config in configs.items()}
    lines = [
        f"{adapter_folder.format_adapter_option(folders[name], name)}: {reason}"
        for name, reason in reasons.items()
        if reason
    ]
    lines = lines or list(adapter_rules.check_loadable_together(configs))
    if lines:
        raise AdapterError(*lines)


def _check_adapter_names(host: Any, names: list[str]) -> None:
    """Raises: AdapterError: PEFT, which finds an adapter's tensors by its name, could not tell them from other parts of the model."""
    taken = {part for key, _ in host.named_parameters() for part in key.split(".")}
    for name in names:
        adapter_folder.check_adapter_name(name)
        prefixed = name.startswith(tuple(filter(None, PEFT_TYPE_TO_PREFIX_MAPPING.values())))
        part = name in ("weight", "bias") or (len(names) > 1 and (name in taken or prefixed))
        if part or hasattr(torch.nn.ModuleDict(), name):
            raise AdapterError(
                f"adapter.{name}: is also the name of a part of the model; type another, such as adapter={{{name}_1: PATH}}"
            )


def add_adapters(base: LoadedBase, folders: dict[str, Path]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The base with all adapters, and for each the logits without it."""
    model, plain = None, {}
    for name, folder in folders.items():
        call = read_json(folder / ADAPTER_CONFIG).get("alora_invocation_tokens")
        plain[name] = probes.compute_probe_logits(base.model, base.tokenizer, call)
    for name, folder in folders.items():
        if classifier_head.read_adapter_head(str(folder), name):
            raise AdapterError(f"adapter.{name}={folder}: is a classifier's and cannot stand beside a language model's")
        model = add_adapter(base, base.model, model, name, folder)
    return model, plain


def add_classifiers(base: LoadedBase, folders: dict[str, Path]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The same for classifiers: see `company`. One alone is a plain PeftModel."""
    hosts: dict[str, Any] = {}
    for name, folder in folders.items():
        head = classifier_head.read_adapter_head(str(folder), name)
        if head is None:
            raise AdapterError(f"adapter.{name}={folder}: is no classifier's and cannot stand beside one")
        free = head == base.head and not any(host is base.model for host in hosts.values())
        hosts[name] = base.model if free else shared_encoder.add_classifier(base, head)
    plain = {name: probes.compute_probe_logits(host, base.tokenizer) for name, host in hosts.items()}
    members = {name: add_adapter(base, host, None, name, folders[name]) for name, host in hosts.items()}
    return (shared_encoder.SharedEncoder(members) if len(members) > 1 else next(iter(members.values()))), plain


def add_adapter(base: LoadedBase, host: Any, model: Any, name: str, folder: Path) -> Any:
    """`model`, or `host` where there is none yet, with one more adapter. Raises: AdapterError: it does not fit the base."""
    try:
        config = peft_config.read_peft_config(folder)
        config.inference_mode = True
        if any(one.is_meta for one in host.parameters()):
            return offload.add_to_offloaded(host, model, config, name, folder)
        if model is None:
            model = get_peft_model(host, config, adapter_name=name)
        elif name not in model.peft_config:
            model.add_adapter(name, config)
        with trainable_tokens.skip_adapters_without_tokens(model, name), saved_base.preserve_base(model, name, folder):
            model.load_adapter(str(folder), name, torch_device="cpu")
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise AdapterError(_explain_failure(error, base, model, name, folder)) from error
    return model


def _explain_failure(error: Exception, base: LoadedBase, model: Any, name: str, folder: Path) -> str:
    """What PEFT says against an adapter: that it is for another base, that it cannot share this one, or what else."""
    reason = " ".join(str(error).split())[:300]
    others = [other for other in getattr(model, "peft_config", {}) if other != name]
    if any(words in str(error) for words in OTHER_BASE_ERRORS):
        return f"{folder}: does not fit {base.name} ({reason}); choose the base it was made for"
    if others:
        return (
            f"adapter.{name}={folder}: PEFT cannot load it together with {', '.join(others)} ({reason}); load it alone"
        )
    return f"{adapter_folder.format_adapter_option(folder, name)}: PEFT {get_version('peft')} cannot load it on {base.name} ({reason})"
