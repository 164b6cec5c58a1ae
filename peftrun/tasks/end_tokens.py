"""Where an answer ends: one set of end tokens for all that is generated and measured."""

from collections.abc import Collection
from typing import Any

from peftrun.errors import ModelError
from peftrun.tasks.chat_template import TEMPLATE_ERRORS

PROBE_CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]


def find_end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, those of the model's generation config, and the one that its chat template ends a turn with.
    None at all where nothing names one."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list | tuple) else [configured]
    known = dict.fromkeys(int(one) for one in [tokenizer.eos_token_id, *listed] if one is not None)
    turn = _find_template_end_token(tokenizer, known)
    return [*known, *([] if turn is None else [turn])]


def cut_at_end_token(ids: list[int], ends: Collection[int]) -> list[int]:
    """`ids` up to and with the first end token: what comes after is never generated."""
    first = next((place for place, one in enumerate(ids) if one in ends), len(ids))
    return ids[: first + 1]


def require_eos_token_id(tokenizer: Any) -> int:
    """The tokenizer's own end token. Raises: ModelError: it has none."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model.name_or_path={tokenizer.name_or_path}: its tokenizer names no end token, so no answer could end; "
            f'write one of its tokens, "eos_token": "TOKEN", into tokenizer_config.json in {tokenizer.name_or_path}'
        )
    return int(tokenizer.eos_token_id)


def list_special_tokens(tokenizer: Any) -> dict[str, int]:
    """Text → id of each token that means something to the model and is no text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {token.content: number for number, token in added.items() if token.special and token.content}


def _find_template_end_token(tokenizer: Any, known: Collection[int]) -> int | None:
    """The first special token behind an answer, where none of those that are known comes there."""
    if not tokenizer.chat_template:
        return None
    try:
        one, other = (
            tokenizer.apply_chat_template(
                [PROBE_CONVERSATION[0], PROBE_CONVERSATION[1] | {"content": text}], return_dict=True
            )["input_ids"]
            for text in ("yes", "no")
        )
    except TEMPLATE_ERRORS:
        return None
    behind = one[len(one) - count_common_suffix(one, other) :]
    special = set(list_special_tokens(tokenizer).values())
    return None if set(behind) & set(known) else next((int(token) for token in behind if token in special), None)


def count_common_suffix(one: list[int], other: list[int]) -> int:
    """How many tokens two lists have in common at their ends."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
