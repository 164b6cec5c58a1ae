"""Rules of action=export. Light: checked before anything is written."""

import os
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

from peftrun.artifacts import adapter_source
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.portable_names import HUB_ID
from peftrun.checks import gguf_support, vllm_support
from peftrun.errors import PeftrunError
from peftrun.system.packages import explain_not_installed

TARGET_CHECKS: dict[str, Callable[[ExportSource], Iterable[str]]] = {
    "vllm": vllm_support.check_vllm_support,
    "gguf": gguf_support.check_gguf_support,
}
FULL_MODEL_ADVICE = {
    "vllm": "vLLM serves a full model as it is: type `vllm serve FOLDER`",
    "gguf": "llama.cpp's own convert_hf_to_gguf.py converts a full model",
}


def check_export(action: Any, adapter: dict[str, str], adapters: dict[str, AdapterRef]) -> Iterator[str]:
    """One line for each reason why this export would fail, or would ignore a key."""
    if not adapter and action.model_dir is None:
        yield "adapter is not set; action=export needs one: type adapter=RUN_FOLDER (a full model: action.model_dir=FOLDER)"
    if adapter and action.model_dir is not None:
        yield f"action.model_dir={action.model_dir}: cannot be combined with adapter; omit one of them"
    if len(adapter) > 1 and action.target != "vllm":
        yield f"adapter: action.target={action.target} exports one adapter at a time; type adapter=RUN_FOLDER"
    yield from _check_hub_options(action)
    if action.target == "gguf" and find_spec("gguf") is None:
        yield explain_not_installed("action.target=gguf needs package", "gguf")
    if action.model_dir is not None and not adapter:
        try:
            adapter_source.open_model_source(action.model_dir)
        except PeftrunError as error:
            yield from error.lines
    for ref in adapters.values():
        yield from _check_adapter(action.target, ref)


def _check_hub_options(action: Any) -> Iterator[str]:
    for key in ("base_model", "repo_id"):
        value = getattr(action, key)
        if value is not None and not HUB_ID.fullmatch(value):
            yield f"action.{key}={value}: must be an id on the Hub; type action.{key}=ORG/NAME"
    if action.target != "hub":
        if action.model_dir is not None:
            yield f"action.model_dir={action.model_dir}: {FULL_MODEL_ADVICE[action.target]}; omit action.model_dir"
        for key in ("license", "repo_id"):
            if getattr(action, key) is not None:
                yield f"action.{key}={getattr(action, key)}: is only for action.target=hub; omit action.{key}"
        if action.push:
            yield "action.push=true: is only for action.target=hub; omit action.push"
    elif action.push:
        yield from _check_push(action)


def _check_push(action: Any) -> Iterator[str]:
    if action.repo_id is None:
        yield "action.repo_id is not set; action.push=true needs it: type action.repo_id=ORG/NAME"
    yield from check_push_possible("action.push=true")


def check_push_possible(option: str) -> Iterator[str]:
    """A push to the Hub, requested by `option`, is not excluded by the environment."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield f"{option}: HF_HUB_OFFLINE is set, so nothing is sent; unset it"
    from huggingface_hub import get_token  # imported here: only a push needs it

    if get_token() is None:
        yield f"{option}: there is no token for the Hub; type `hf auth login`, or set HF_TOKEN to a token with write access"


def _check_adapter(target: str, adapter: AdapterRef) -> Iterator[str]:
    try:
        source = adapter_source.open_adapter_source(adapter)
    except PeftrunError as error:
        yield from error.lines
        return
    yield from TARGET_CHECKS.get(target, lambda _: [])(source)
    from peftrun.artifacts import delta_weights  # numpy takes a tenth of a second, and every refusal would wait for it

    tensor = delta_weights.find_nonfinite_tensor(source.folder)
    if tensor:
        yield f"{adapter.option}: tensor {tensor} has NaN or infinity, so training has diverged; train again with a lower learning rate"
