"""End tokens of an answer: one set for generation and evaluation."""

from collections.abc import Collection
from typing import Any

from peftrun.errors import ModelError
from peftrun.tasks.chat_template import TEMPLATE_ERRORS

PROBE_CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]


def find_end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids of the tokens that end an answer: the tokenizer's, those of the model's generation config, and the one that ends a turn in the
    chat template. Empty if there is none."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list | tuple) else [configured]  # one id or a list
    ends = dict.fromkeys(int(token) for token in [tokenizer.eos_token_id, *listed] if token is not None)
    if not tokenizer.chat_template:
        return list(ends)
    try:
        # Two renderings that differ only in the answer: what they share at the end comes after it.
        first, second = (
            tokenizer.apply_chat_template(
                [PROBE_CONVERSATION[0], PROBE_CONVERSATION[1] | {"content": text}], return_dict=True
            )["input_ids"]
            for text in ("yes", "no")
        )
    except TEMPLATE_ERRORS:
        return list(ends)
    after = first[len(first) - count_common_suffix(first, second) :]
    if set(after).isdisjoint(ends):
        special = set(list_special_tokens(tokenizer).values())
        return [*ends, *[int(token) for token in after if token in special][:1]]
    return list(ends)


def cut_at_end_token(ids: list[int], ends: Collection[int]) -> list[int]:
    """`ids` up to and including the first end token: generation stops there."""
    first = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]


def require_eos_token_id(tokenizer: Any) -> int:
    """The tokenizer's end token. Raises: ModelError: it has none."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model.name_or_path={tokenizer.name_or_path}: its tokenizer has no end token, so no answer could end; "
            """name one of its tokens: type 'model.special_tokens={eos: "TOKEN"}'"""
        )
    return int(tokenizer.eos_token_id)


def list_special_tokens(tokenizer: Any) -> dict[str, int]:
    """Text → id of each special token."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {token.content: token_id for token_id, token in added.items() if token.special and token.content}


def count_common_suffix(first: list[int], second: list[int]) -> int:
    """Number of tokens that two lists have in common at their ends."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
