"""What must hold of a server before its base is loaded; light."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from peftrun.artifacts import adapter_folder, adapter_rules
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.errors import PeftrunError
from peftrun.io.atomic_files import read_json
from peftrun.system.packages import explain_not_installed

Lines = Iterator[str]
REQUIRED_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
VIRTUAL_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE", "CPT")
CLASSIFIERS = ("SEQ_CLS", "TOKEN_CLS")  # as PEFT names them
NO_ANSWERS = (
    "is a classifier's adapter, and action={} answers with language models alone; "
    "measure it with action=evaluate, the model and the task that it was trained with"
)
MERGE_ADVICE = "merge it and serve the merged model: action=merge adapter=PATH"


def check_serve(action: Any, adapter: dict[str, str]) -> Lines:
    """The packages are there, the key is, and the adapters can answer beside each other."""
    if action.name != "serve":
        return
    missing = next((name for name in REQUIRED_PACKAGES if find_spec(name) is None), None)
    if missing:
        yield explain_not_installed("action=serve needs package", missing)
    if action.api_key_env is not None and not os.environ.get(action.api_key_env):
        yield f"action.api_key_env={action.api_key_env}: this environment variable is not set, or empty; export {action.api_key_env}=KEY, or type action.api_key_env=null"
    if BASE_ADAPTER_NAME in adapter:
        yield f"adapter.{BASE_ADAPTER_NAME}: means the base without any adapter; give this adapter another name"
    for name, path in adapter.items():
        try:
            reason = explain_unservable(read_json(adapter_folder.resolve_adapter_dir(path, name) / ADAPTER_CONFIG))
        except PeftrunError:
            continue  # told by the rule for adapters
        if reason:
            yield f"adapter.{name}={path}: {reason}"


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether an adapter_config.json is of one that names classes and writes no text."""
    return config.get("task_type") in CLASSIFIERS


def explain_unservable(config: dict[str, Any]) -> str | None:
    """Why an adapter with this adapter_config.json cannot answer beside others and the base; None if it can."""
    if is_classifier(config):
        return NO_ANSWERS.format("serve")
    kind = config.get("peft_type")
    if kind in VIRTUAL_TOKENS or kind == "ADAPTION_PROMPT":
        return f"is of type {kind}, which adds to what is read, and rows of a running batch cannot be read so; answer with action=generate"
    if config.get("alora_invocation_tokens"):
        return "is an aLoRA, which begins in the middle of a text; answer with action=generate"
    if config.get("target_parameters"):
        return f"adapts parameters (target_parameters), which rows of other adapters cannot pass by; {MERGE_ADVICE}"
    change = adapter_rules.describe_base_change(config)
    if change:
        return f"{change}, with which everybody would answer; {MERGE_ADVICE}"
    return None
