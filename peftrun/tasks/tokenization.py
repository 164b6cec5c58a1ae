"""Conversations as token ids, by the model's chat template if it has one, else as plain text. Training, evaluation, generation and
serving all use it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from peftrun import console
from peftrun.config.schema.run import TaskSpec
from peftrun.errors import DataError
from peftrun.tasks import end_tokens
from peftrun.tasks.chat_template import ChatTemplate, list_extra_keys
from peftrun.tasks.messages import ROW_ADVICE, Conversation, Message, load_tools
from peftrun.tasks.token_ids import TokenIds

Span = tuple[int, int]  # of token ids: the first, and one after the last
AMBIGUOUS_ANSWER = (
    "the model's chat template renders earlier answers differently from the last one, so they cannot be located; "
    "type task.loss_on=completion"
)
TEMPLATE_ADVICE = "choose one: type model.chat_template=chatml, another name or a file"


class Encoder:
    """Encodes the conversations of a task for a model. It collects remarks about rows, which `report_remarks` logs."""

    def __init__(self, tokenizer: Any, task: TaskSpec) -> None:
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, task.template_arguments or {}) if tokenizer.chat_template else None
        self._tools, self._special_tokens = load_tools(task.tools), task.special_tokens_in_text
        escape = {"split_special_tokens": True} if self._special_tokens == "escape" else {}
        self._plain = TokenIds(tokenizer, **escape)
        self._bare = TokenIds(tokenizer, add_special_tokens=False, **escape)
        special = sorted(end_tokens.list_special_tokens(tokenizer), key=len, reverse=True)  # the longest match first
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")  # "(?!)" never matches
        self._remarks: dict[tuple[str, str], list[str]] = {}  # (type of remark, name) → locations of rows
        self._where = ""  # location of the row that was checked last
        if self._template is None and task.messages_column is not None:
            console.print_info(
                f"data: the model has no chat template, so conversations are written as plain text, without roles; {TEMPLATE_ADVICE}"
            )

    def read_ahead(self, renderings: list[tuple[Conversation, bool]], texts: list[str]) -> None:
        """Tokenizes the renderings and plain texts of many rows in one batch. Remarks and errors come later, with each row.

        Args: renderings: conversations, each with whether a generation prompt follows.
        """
        if self._template is not None:
            self._template.read_ahead(
                [(self._add_tools(item), opened) for item, opened in renderings if not self._needs_escaping(item)]
            )
        else:
            self._bare.read_ahead(item.messages[-1].text for item, opened in renderings if not opened)
            texts = [*texts, *(_join_messages(item) for item, opened in renderings if opened)]
        self._plain.read_ahead(texts)

    def check(self, where: str, conversation: Conversation, text: str = "") -> list[str]:
        """Checks a row, a conversation or a plain text, for special tokens and for parts that the template leaves out.

        Returns: what the template leaves out: "tools", keys of messages.
        Raises: DataError: it has special tokens and they are refused, or the template leaves out its tool calls.
        """
        self._where = where
        match = self._special.search("\n".join([text, *_collect_texts(conversation.messages)]))
        if match and self._special_tokens == "refuse":
            raise DataError(
                f"holds the special token {match[0]}; {ROW_ADVICE}, or type task.special_tokens_in_text=escape: it is then read as plain text"
            )
        if match:
            self._add_remark("special", match[0])
        conversation = self._add_tools(conversation)
        if self._template:
            unwritten = self._template.list_unwritten(conversation)
        elif conversation.calls_tools:
            raise DataError(
                f"has tool_calls, and the model has no chat template that could write them; {TEMPLATE_ADVICE}, or {ROW_ADVICE}"
            )
        else:
            unwritten = [*list_extra_keys(conversation), *(["tools"] if conversation.tools else [])]
        for name in unwritten:
            self._add_remark("unwritten", name)
        return unwritten

    def prompt(self, given: Conversation) -> list[int]:
        """Token ids of a conversation with the generation prompt. Raises: DataError: the template refuses it."""
        if self._template is not None and given:
            return self._ids(given, opened=True)
        return self.plain(_join_messages(given)) if given else []

    def answered(self, given: Conversation, answers: Sequence[Message]) -> tuple[list[int], list[list[int]]]:
        """Token ids of the prompt, and of each answer up to the end of its turn. Joined, they are the template's rendering of both.

        Raises: DataError: the template refuses a conversation, or renders the prompt differently once it is answered.
        """
        if self._template is None:
            if not given:
                raise DataError(
                    f"begins with an answer, which only a chat template can open, and the model has none; {TEMPLATE_ADVICE}, or {ROW_ADVICE}"
                )
            return self.prompt(given), [self._append_end_token(self._bare.of(answer.text)) for answer in answers]
        wholes = [given.followed_by(answer) for answer in answers]
        encoded = [self._ids(whole) for whole in wholes]
        # One prompt for all answers: where the first of them diverges from it.
        start = min(self._find_start(given, whole, ids) for whole, ids in zip(wholes, encoded, strict=True))
        return encoded[0][:start], [ids[start:] for ids in encoded]

    def learned(self, whole: Conversation, ids: list[int], start: int, loss_on: str) -> list[Span]:
        """The spans of a conversation's ids that carry loss. `start`: of the last answer.

        Raises: DataError: an earlier answer cannot be located.
        """
        marked: list[Span] = []
        if loss_on != "all" and self._template is not None and whole and not self._needs_escaping(whole):
            marked = self._template.find_assistant_spans(self._add_tools(whole))
        if loss_on == "completion":
            return [(max(a, start), b) for a, b in marked if b > start] if marked else [(start, len(ids))]
        unlearned = [index for index in whole.answers if index in whole.unlearned]
        if loss_on == "assistant" and not marked:
            return [self._find_turn(whole, ids, index) for index in whole.answers if index not in unlearned]
        spans = marked or [(0, len(ids))]
        for begin, end in (self._find_turn(whole, ids, index) for index in unlearned):  # cut these out
            spans = [part for a, b in spans for part in ((a, min(b, begin)), (max(a, end), b)) if part[0] < part[1]]
        return spans

    def plain(self, text: str) -> list[int]:
        """Token ids of a plain text with the tokenizer's special tokens before it, without an end token after it."""
        ids, end = self._plain.of(text), self.tokenizer.eos_token_id
        if end is None or ids[-1:] != [end]:
            return ids
        # The end token may be the tokenizer's, or the last token of the text itself, which stays.
        bare = self._bare.of(text)
        return ids[:-1] if ids[len(ids) - 1 - len(bare) : -1] == bare else ids

    def text(self, text: str) -> list[int]:
        """Token ids of a plain text to train on, with an end token after it."""
        return self._append_end_token(self.plain(text))

    def report_remarks(self, which: str) -> None:
        """Logs the remarks on the rows of a split, and clears them."""
        for (topic, name), rows in self._remarks.items():
            if topic == "parting":
                remark = (
                    f"the template opens an answer with {name} in a prompt but not in a finished conversation; "
                    "training uses the finished form"
                )
            elif topic == "across":
                remark = (
                    f"an answer's first token begins with {name}, which the prompt ends with, so prompts differ slightly from those in training; "
                    "begin answers without blanks"
                )
            elif topic == "unwritten":
                by = "by the model's chat template" if self._template else "for a model without a chat template"
                remark = f"{name} is not written {by}, so nothing is learned of it"
            elif self._special_tokens == "escape":
                remark = f"{name} in the text is read as plain text"
            else:
                remark = (
                    f"{name} in the text is read as the model's special token (task.special_tokens_in_text=escape reads it as text, "
                    "refuse ends the run)"
                )
            console.print_info(f"data: {remark} ({len(rows)} {which} rows, the first: {rows[0]})")
        self._remarks.clear()

    def _add_remark(self, topic: str, name: str) -> None:
        rows = self._remarks.setdefault((topic, name), [])
        if self._where not in rows[-1:]:  # one row may be encoded several times
            rows.append(self._where)

    def _add_tools(self, conversation: Conversation) -> Conversation:
        tools = conversation.tools or self._tools  # `task.tools` is for rows without their own
        return Conversation(conversation.messages, tools, conversation.unlearned)

    def _ids(self, conversation: Conversation, opened: bool = False) -> list[int]:
        assert self._template is not None
        return self._template.ids(self._add_tools(conversation), opened, escaping=self._needs_escaping(conversation))

    def _needs_escaping(self, conversation: Conversation) -> bool:
        if self._special_tokens != "escape":
            return False
        return self._special.search("\n".join(_collect_texts(conversation.messages))) is not None

    def _append_end_token(self, ids: list[int]) -> list[int]:
        end = end_tokens.require_eos_token_id(self.tokenizer)
        return ids if ids[-1:] == [end] else [*ids, end]

    def _find_start(self, given: Conversation, whole: Conversation, ids: list[int]) -> int:
        """Index at which the answer to `given` begins in `ids`, the encoding of `whole`, which continues `given`."""
        assert self._template is not None
        if not given:  # the first message begins where changing its beginning changes the ids
            changed = _replace_message(whole, 0, _perturb_message(whole.messages[0], front=True))
            return count_common_prefix(ids, self._ids(changed))
        prompt = self.prompt(given)
        start = count_common_prefix(prompt, ids)
        if start == len(prompt):
            return start
        # They diverge before the prompt ends: either a token spans the end of the prompt and the beginning of the
        # answer, or the generation prompt differs from what the template writes before a finished answer.
        opened = self._template.text(self._add_tools(given), opened=True)
        finished = self._template.text(self._add_tools(whole))
        if finished.startswith(opened):
            self._add_remark("across", repr(self.tokenizer.decode(prompt[start:])))
            return start
        # The content of the last given message ends, at the latest, where changing it changes the prompt.
        changed = given.before(len(given.messages) - 1).followed_by(_perturb_message(given.messages[-1]))
        if start < count_common_prefix(prompt, self.prompt(changed)):
            raise DataError(
                "the model's chat template renders the prompt differently once it is answered, so the answer cannot be located; "
                "choose a model with another template"
            )
        self._add_remark("parting", repr(self.tokenizer.decode(prompt[start:])))
        return start

    def _find_turn(self, whole: Conversation, ids: list[int], index: int) -> Span:
        """The span of the assistant's message at this index, with the end of its turn, in the ids of a conversation."""
        if self._template is None:
            raise DataError(
                f"the model has no chat template, so earlier answers cannot be located; {TEMPLATE_ADVICE}, or task.loss_on=completion"
            )
        given = whole.before(index)
        through = self._ids(given.followed_by(whole.messages[index]))
        start = self._find_start(given, whole, ids)
        if ids[: len(through)] == through:
            return start, len(through)
        # The template renders the turn differently once others follow (Qwen3 drops the thinking of earlier answers). So
        # the message is changed: the ids after it stay the same, both in the whole conversation and where it is last.
        changed = _perturb_message(whole.messages[index])
        after = end_tokens.count_common_suffix(ids, self._ids(_replace_message(whole, index, changed)))
        turn_end = end_tokens.count_common_suffix(through, self._ids(given.followed_by(changed)))
        if after == len(ids) or turn_end == len(through):  # the change is not rendered
            raise DataError(AMBIGUOUS_ANSWER)
        end = len(ids) - after
        end += count_common_prefix(ids[end:], through[len(through) - turn_end :])
        if end <= start:
            raise DataError(AMBIGUOUS_ANSWER)
        return start, end


def _join_messages(given: Conversation) -> str:
    """The prompt of a model without a chat template."""
    return "\n".join(message.text for message in given.messages) + "\n"


def count_common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Number of tokens (or characters) that two lists (or texts) have in common at their beginnings."""
    pairs = zip(first, second, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _collect_texts(value: Any) -> Iterable[str]:
    """Every text in nested messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _collect_texts(item)


def _perturb_message(message: Message, front: bool = False) -> Message:
    """The message with another text (changed at its end, or at its front) and with other function names in its calls."""
    text = message.text
    calls = [
        {**call, "function": {**call["function"], "name": call["function"]["name"] + "x"}} for call in message.get("tool_calls", [])
    ]  # fmt: skip
    content = {"content": f"x{text}" if front else f"{text} x"} if text else {}
    return Message({**message, **content, **({"tool_calls": calls} if calls else {})})


def _replace_message(whole: Conversation, index: int, message: Message) -> Conversation:
    messages = (*whole.messages[:index], message, *whole.messages[index + 1 :])
    return Conversation(messages, whole.tools)
