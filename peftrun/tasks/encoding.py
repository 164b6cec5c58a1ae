"""Talks as token ids, by the model's own chat template where it has one."""

from typing import Any

from jinja2 import TemplateError

from peftrun.errors import DataError
from peftrun.tasks.messages import ASSISTANT, Talk


def prompt_ids(tokenizer: Any, given: Talk) -> list[int]:
    """Token ids of a talk up to the point where the answer begins.

    Raises: DataError: the template refuses the talk.
    """
    if not tokenizer.chat_template:
        return list(tokenizer("\n".join(content for _, content in given) + "\n")["input_ids"]) if given else []
    return _templated(tokenizer, given, add_generation_prompt=True)


def completion_ids(tokenizer: Any, given: Talk, prompt: list[int], text: str) -> list[int]:
    """Token ids of an answer to `given`, whose own are `prompt`, up to the end of the turn.

    Raises: DataError: the template refuses the talk.
    """
    if tokenizer.chat_template and given:
        whole = _templated(tokenizer, (*given, (ASSISTANT, text)))
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
    return [*tokenizer(text, add_special_tokens=not prompt)["input_ids"], tokenizer.eos_token_id]


def answers_in(tokenizer: Any, talk: Talk, ids: list[int]) -> list[tuple[int, int]]:
    """Where the assistant's turns lie in `ids`, the whole talk: (first token, token after the last) of each.

    Raises: DataError: the template writes a turn otherwise once others follow, so that it cannot be found again.
    """
    found = []
    for turn, (role, text) in enumerate(talk):
        if role == ASSISTANT:
            before = prompt_ids(tokenizer, talk[:turn])
            through = [*before, *completion_ids(tokenizer, talk[:turn], before, text)]
            if ids[: len(through)] != through:
                raise DataError(
                    "the model's chat template writes earlier answers otherwise than the last one (or there is no template), so they cannot "
                    "be told apart; type task.loss_on=completion"
                )
            found.append((len(before), len(through)))
    return found


def to_end(ids: list[int], end: int) -> list[int]:
    """`ids` up to and with the first end token: what comes after is never generated."""
    return ids[: ids.index(end) + 1] if end in ids else ids


def _templated(tokenizer: Any, talk: Talk, **how: bool) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in talk]
    try:
        return list(tokenizer.apply_chat_template(messages, return_dict=True, **how)["input_ids"])
    except TemplateError as error:
        roles = ", ".join(role for role, _ in talk)
        raise DataError(
            f"the model's chat template refuses a talk of {roles} ({' '.join(str(error).split())[:200]}); mend or remove it, or omit task.system"
        ) from error
