"""Rules of action=serve. Light: checked before the base model is loaded."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from peftrun.artifacts import adapter_rules
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.classifier_head import TASK_KINDS
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.config.schema.method_traits import get_method_traits
from peftrun.system.packages import explain_not_installed

Lines = Iterator[str]
REQUIRED_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
NO_ANSWERS = (
    "is an adapter of a classifier, and action={} supports only language models; "
    "measure it with action=evaluate, and the model and task that it was trained with"
)
MERGE_ADVICE = "merge it and serve the merged model: action=merge adapter=PATH"


def check_serve(action: Any, adapter: dict[str, str], adapters: dict[str, AdapterRef]) -> Lines:
    """The packages are installed, the API key is set, and every adapter can share a batch with others."""
    if action.name != "serve":
        return
    missing = next((name for name in REQUIRED_PACKAGES if find_spec(name) is None), None)
    if missing:
        yield explain_not_installed("action=serve needs package", missing)
    if action.api_key_env is not None and not os.environ.get(action.api_key_env):
        yield f"action.api_key_env={action.api_key_env}: this environment variable is not set, or empty; export {action.api_key_env}=KEY, or type action.api_key_env=null"
    if BASE_ADAPTER_NAME in adapter:
        yield f"adapter.{BASE_ADAPTER_NAME}: is the name of the base model without any adapter; give this adapter another name"
    for name, ref in adapters.items():
        reason = explain_unservable(ref.config)
        if reason:
            yield f"adapter.{name}={ref.path}: {reason}"


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether an adapter_config.json is of a sequence or token classifier."""
    return config.get("task_type") in TASK_KINDS


def explain_unservable(config: dict[str, Any]) -> str | None:
    """Why an adapter with this adapter_config.json cannot be served together with others and the base model; None if it can."""
    if is_classifier(config):
        return NO_ANSWERS.format("serve")
    method = config.get("peft_type")
    if not get_method_traits(method).merges:
        return f"is of type {method}, which prepends virtual tokens, and continuous batching does not support them; use action=generate"
    if config.get("alora_invocation_tokens"):
        return "is an aLoRA, which is active only after its invocation tokens; use action=generate"
    # PEFT routes rows of a batch only through adapters of modules; a parametrized weight is the same for all rows.
    if config.get("target_parameters"):
        return f"adapts parameters (target_parameters), which cannot be switched off for rows of other adapters; {MERGE_ADVICE}"
    change = adapter_rules.describe_base_change(config)
    if change:
        return f"{change}, which would change the answers of all other adapters; {MERGE_ADVICE}"
    return None
