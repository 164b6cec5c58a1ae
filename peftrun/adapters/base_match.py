"""Whether a base model is the one that an adapter was made for: its weights, its tokenizer, its chat template.

Every action uses the base model's tokenizer and chat template, even if the adapter's folder has its own.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from packaging.version import InvalidVersion, Version
from transformers import AutoTokenizer

from peftrun import console
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.fingerprint import TEMPLATE_FILES, Fingerprint
from peftrun.errors import AdapterError
from peftrun.system.versions import get_version

WEIGHTS, TOKENIZER, TEMPLATE, ARGUMENTS = "weights", "tokenizer", "chat template", "value of model.arguments"
TOKEN_KEYS = ("model.chat_template", "model.special_tokens", "model.new_tokens")
LENGTH_SETTINGS = ("truncation", "padding")  # keys of tokenizer.json that do not change a text's tokens


def check_base_match(
    name: str, mark: Fingerprint, adapter: AdapterRef, allow: bool, tokenizer: Callable[[], Any]
) -> None:
    """Compares the base model with the recorded one, and its tokenizer with one in the adapter's folder. Another chat template only warns.

    Args: mark: fingerprint of the base model `name`. allow: warn instead of raising. tokenizer: loads the base model's.
    Raises: AdapterError: the adapter was made for other weights or another tokenizer.
    """
    metadata = adapter.metadata
    _warn_if_newer(adapter)
    if metadata is None:
        console.print_warning(
            f"{adapter.label} was not made by peftrun: the base it was made for cannot be checked, its tensors are"
        )
    elif parts := find_differing_parts(mark, metadata):
        recorded = metadata["base"]
        text = f"{adapter.label}: was made for base {recorded['name']} ({recorded['fingerprint']['weights'][:12]}), "
        text += f"this is {name} ({mark.short()})"
        others = [part for part in parts if part != WEIGHTS]
        text += f", which has another {' and another '.join(others)}" if others else ""
        keys = [
            *(TOKEN_KEYS if {TOKENIZER, TEMPLATE} & set(parts) else ()),
            *(["model.arguments"] if ARGUMENTS in parts else []),
        ]
        own = "" if WEIGHTS in parts else f", and leave {', '.join(keys)} to the adapter"
        _warn_or_raise(text, parts, allow, f"choose that model{own}")
    _check_adapter_tokenizer(name, adapter, allow, tokenizer)


def _warn_if_newer(adapter: AdapterRef) -> None:
    made_by, installed = str((adapter.metadata or {}).get("peftrun")), get_version("peftrun")
    with suppress(InvalidVersion):  # none is recorded, or a checkout without a version
        if Version(made_by) > Version(installed):
            console.print_warning(
                f"{adapter.label} was made by peftrun {made_by}, newer than this {installed}, which ignores what it does not know of it; "
                "type pip install -U peftrun"
            )


def find_differing_parts(mark: Fingerprint, metadata: dict[str, Any] | None) -> list[str]:
    """Parts of a base model that differ from those recorded in an adapter's `peftrun.json`; parts that are not recorded count as equal."""
    recorded = metadata["base"]["fingerprint"] if metadata else {}
    digests = {WEIGHTS: mark.weights, TOKENIZER: mark.tokenizer, TEMPLATE: mark.chat_template}
    parts = [part for part, digest in digests.items() if recorded.get(part.replace(" ", "_")) not in (None, digest)]
    return [*parts, *([ARGUMENTS] if recorded and recorded.get("arguments", "") != mark.arguments else [])]


def _check_adapter_tokenizer(name: str, adapter: AdapterRef, allow: bool, tokenizer: Callable[[], Any]) -> None:
    """Compares a tokenizer and chat template in the adapter's folder, where TRL for example saves them, with the base model's."""
    folder = adapter.folder
    if not any((folder / file).is_file() for file in ("tokenizer.json", *TEMPLATE_FILES)):
        return
    base, template_file = tokenizer(), folder / TEMPLATE_FILES[0]
    vocab = base.get_vocab()
    try:
        saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        rules, template = _tokenization_rules(saved, vocab), saved.chat_template
        # Tokens that training added, most often for padding, change no text without them.
        added = sorted(saved.get_added_vocab().keys() - vocab.keys())
        if added:
            console.print_warning(
                f"{adapter.label}: its tokenizer also has {', '.join(added[:3])}, which {name} reads as plain text"
            )
    except (OSError, ValueError, ImportError):  # a chat template only, or an unreadable tokenizer
        rules, template = None, template_file.read_text(encoding="utf-8") if template_file.is_file() else None
    parts = [TOKENIZER] if rules not in (None, _tokenization_rules(base, vocab)) else []
    parts += [TEMPLATE] if template not in (None, base.chat_template) else []
    if parts:
        text = f"{adapter.label}: brings another {' and another '.join(parts)} than {name}, whose own is used"
        advice = "to use the adapter's, name a copy of the base with these files in it as the model"
        if parts == [TEMPLATE] and template_file.is_file():
            advice = f"to use the adapter's, type model.chat_template={template_file}"
        _warn_or_raise(text, parts, allow, advice)


def _tokenization_rules(tokenizer: Any, vocab: dict[str, int]) -> Any:
    """Everything that determines the tokens of a text, restricted to tokens in `vocab`, the base model's."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:  # a slow tokenizer has no serialized rules
        return {token: index for token, index in tokenizer.get_vocab().items() if token in vocab}
    rules = {key: value for key, value in json.loads(core.to_str()).items() if key not in LENGTH_SETTINGS}
    return rules | {"added_tokens": [token for token in rules["added_tokens"] if token["content"] in vocab]}


def _warn_or_raise(text: str, parts: list[str], allow: bool, advice: str) -> None:
    if parts == [TEMPLATE]:
        console.print_warning(f"{text}: conversations may be answered otherwise; {advice}")
    elif allow:
        console.print_warning(f"{text}; loaded all the same, as allowed")
    else:
        raise AdapterError(f"{text}; {advice}, or type allow_base_mismatch=true to go on with what this base has")
