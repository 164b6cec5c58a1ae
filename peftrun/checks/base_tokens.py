"""Rules of the chat template, the special tokens and the new tokens of a base model. What needs its vocabulary is checked when it is known."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftrun.artifacts import token_settings
from peftrun.checks.tasks import MODELLESS
from peftrun.checks.unknown_keys import find_close_match
from peftrun.config.paths import no_file
from peftrun.config.schema import run as schema
from peftrun.config.schema.lora import LoraSpec, NoAdapter
from peftrun.errors import PeftrunError

Lines = Iterator[str]
NAMED_TEMPLATES = "chatml, llama3, mistral, gemma, qwen3, phi3"
CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]


def check_chat_template(model: schema.ModelSpec, action: Any) -> Lines:
    """The template exists, is one, and renders a conversation of a question and an answer."""
    value = model.chat_template
    if value is None or action.name in MODELLESS:
        return
    known, key = token_settings.list_template_files(), f"model.chat_template={value}"
    if value not in known and not Path(value).expanduser().is_file():
        nearest = find_close_match(value, known)
        advice = f"did you mean {nearest}? type model.chat_template={nearest}" if nearest else "type another, or null"
        yield f"{key}: {no_file(value)}, and no template has this name; names: {NAMED_TEMPLATES}, …; {advice}"
        return
    try:
        text = token_settings.read_chat_template(value)
    except PeftrunError as error:
        yield from error.lines
        return
    if problem := _find_fault(text):
        yield f"{key}: {problem}; correct it, or type model.chat_template=null"


def _find_fault(template: str) -> str | None:
    """Why the template cannot render a conversation of one question and its answer; None if it can."""
    from jinja2 import TemplateError, TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "")
    try:
        for messages, opened in ((CONVERSATION, False), (CONVERSATION[:1], True)):
            render_jinja_template([messages], chat_template=template, add_generation_prompt=opened, **tokens)
    except TemplateSyntaxError as error:
        return f"is not a Jinja template (line {error.lineno}: {error.message})"
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        return f"cannot render a question and its answer ({' '.join(str(error).split())[:200]})"
    return None


def check_new_tokens(model: schema.ModelSpec, lora: Any, action: Any) -> Lines:
    """New tokens are texts, each once, and the method trains their embeddings."""
    if action.name in MODELLESS:
        return
    tokens = model.new_tokens or []
    if any(not token.strip() for token in tokens):
        yield "model.new_tokens: holds a text without a visible character; remove it"
    if repeated := sorted({token for token in tokens if tokens.count(token) > 1}):
        yield f"model.new_tokens: holds {', '.join(repeated)} more than once; type each once"
    if model.pad_vocab_to_multiple_of is not None and not tokens:
        yield (
            f"model.pad_vocab_to_multiple_of={model.pad_vocab_to_multiple_of}: is only for embeddings that model.new_tokens enlarges; "
            "type model.pad_vocab_to_multiple_of=null"
        )
    trains = action.name in ("train", "save", "plan", "preview")
    if tokens and trains and not isinstance(lora, LoraSpec | NoAdapter):
        yield (
            f"model.new_tokens: lora.method={lora.method} trains no embeddings of single tokens, so they would stay as they start; "
            "type lora=lora, or lora=none to train all weights"
        )


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("model", "action"), check_chat_template),
    (("model", "lora", "action"), check_new_tokens),
]
