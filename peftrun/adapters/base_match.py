"""Whether a base is the one that an adapter was made for: its weights, its tokenizer, its chat template.

Every action reads text by the base's tokenizer and chat template, whatever lies beside the adapter.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from peftrun import console
from peftrun.artifacts import adapter_folder
from peftrun.artifacts.fingerprint import TEMPLATE_FILES, Fingerprint
from peftrun.errors import AdapterError

WEIGHTS, TOKENIZER, TEMPLATE = "weights", "tokenizer", "chat template"
LENGTH_SETTINGS = ("truncation", "padding")  # settings of a tokenizer that do not change which tokens a text has


def check_base_match(name: str, mark: Fingerprint, folder: Path, allow: bool, tokenizer: Callable[[], Any]) -> None:
    """Says where only the chat template is another: what is not asked through it is answered alike. A tokenizer beside the adapter counts too.

    Args: tokenizer: loads that of the base `name`, whose fingerprint is `mark`.
    Raises: AdapterError: the adapter in `folder` was made for other weights, or another tokenizer.
    """
    known = adapter_folder.read_peftrun_metadata(folder)
    if known is None:
        console.print_warning(
            f"{folder} was not made by peftrun: the base it was made for cannot be checked, its tensors are"
        )
    elif parts := find_differing_parts(mark, known):
        _warn_or_raise(_describe_mismatch(name, mark, folder, known, parts), parts, allow, "choose that model")
    _check_adapter_tokenizer(name, folder, allow, tokenizer)


def _describe_mismatch(name: str, mark: Fingerprint, folder: Path, known: dict[str, Any], parts: list[str]) -> str:
    made_for = known["base"]
    text = f"{folder}: was made for base {made_for['name']} ({made_for['fingerprint']['weights'][:12]}), "
    text += f"this is {name} ({mark.short()})"
    others = [part for part in parts if part != WEIGHTS]
    return text + (f", which has another {' and another '.join(others)}" if others else "")


def find_differing_parts(mark: Fingerprint, known: dict[str, Any] | None) -> list[str]:
    """Parts of a base that are not those of the one that an adapter was made for, as far as its `peftrun.json` tells."""
    made_for = known["base"]["fingerprint"] if known else {}
    here = {WEIGHTS: mark.weights, TOKENIZER: mark.tokenizer, TEMPLATE: mark.chat_template}
    then = {part: made_for.get(part.replace(" ", "_")) for part in here}
    return [part for part, digest in here.items() if then[part] not in (None, digest)]


def _check_adapter_tokenizer(name: str, folder: Path, allow: bool, tokenizer: Callable[[], Any]) -> None:
    """The same by a tokenizer and a template that lie beside the adapter: TRL, for one, saves them there."""
    if not any((folder / file).is_file() for file in ("tokenizer.json", *TEMPLATE_FILES)):
        return
    base, template = tokenizer(), folder / TEMPLATE_FILES[0]
    known = base.get_vocab()
    try:
        own = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        found = (_tokenization_rules(own, known), own.chat_template)
        _warn_added_tokens(name, folder, own, known)
    except (OSError, ValueError, ImportError):  # a template alone, or no tokenizer that could be read
        found = (None, template.read_text(encoding="utf-8") if template.is_file() else None)
    parts = [TOKENIZER] if found[0] not in (None, _tokenization_rules(base, known)) else []
    parts += [TEMPLATE] if found[1] not in (None, base.chat_template) else []
    if parts:
        text = f"{folder}: brings another {' and another '.join(parts)} than {name}, whose own is used"
        _warn_or_raise(
            text, parts, allow, "to use the adapter's, name a copy of the base with these files in it as the model"
        )


def _warn_added_tokens(name: str, folder: Path, own: Any, known: dict[str, int]) -> None:
    """Tokens that training added to the tokenizer, most often for padding, change no text that does not hold them."""
    added = sorted(own.get_added_vocab().keys() - known.keys())
    if added:
        console.print_warning(
            f"{folder}: its tokenizer also has {', '.join(added[:3])}, which {name} reads as plain text"
        )


def _tokenization_rules(tokenizer: Any, known: dict[str, int]) -> Any:
    """What decides which tokens a text has in which none but the base's are: those `known`."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return {token: number for token, number in tokenizer.get_vocab().items() if token in known}
    found = {key: value for key, value in json.loads(core.to_str()).items() if key not in LENGTH_SETTINGS}
    return found | {"added_tokens": [one for one in found["added_tokens"] if one["content"] in known]}


def _warn_or_raise(text: str, parts: list[str], allow: bool, advice: str) -> None:
    if parts == [TEMPLATE]:
        console.print_warning(f"{text}: conversations may be answered otherwise; {advice}")
    elif allow:
        console.print_warning(f"{text}; loaded all the same, as allowed")
    else:
        raise AdapterError(f"{text}; {advice}, or type allow_base_mismatch=true to go on with what this base has")
