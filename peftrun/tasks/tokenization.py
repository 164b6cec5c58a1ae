"""Conversations as token ids: by the model's own chat template where it has one, else as plain text. All that is learned, measured, generated
and served passes through here."""

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
    "the model's chat template writes earlier answers otherwise than the last one (or there is no template), so they cannot be told apart; "
    "type task.loss_on=completion"
)


class Encoder:
    """How the conversations of a task are read by a model. What was remarkable about them, `report` says once."""

    def __init__(self, tokenizer: Any, task: TaskSpec) -> None:
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, task.template_arguments or {}) if tokenizer.chat_template else None
        self._tools, self._special_tokens = load_tools(task.tools), task.special_tokens_in_text
        escape = {"split_special_tokens": True} if self._special_tokens == "escape" else {}
        self._plain = TokenIds(tokenizer, **escape)
        self._bare = TokenIds(tokenizer, add_special_tokens=False, **escape)
        special = sorted(end_tokens.list_special_tokens(tokenizer), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._remarks: dict[str, list[str]] = {}  # what was remarkable → the rows in which it was
        self._where = ""  # the row that was checked last

    def read_ahead(self, told: list[tuple[Conversation, bool]], texts: list[str]) -> None:
        """Reads what many rows are told by in one go: conversations, each with whether an answer is to follow, and plain texts. Nothing is noted, and
        nothing refused, before a row's turn comes."""
        if self._template is not None:
            self._template.read_ahead(
                [(self._add_tools(one), opened) for one, opened in told if not self._needs_escaping(one)]
            )
        else:
            self._bare.read_ahead(one.messages[-1].text for one, opened in told if not opened)
            texts = [*texts, *(_join_messages(one) for one, opened in told if opened)]
        self._plain.read_ahead(texts)

    def check(self, where: str, conversation: Conversation, text: str = "") -> list[str]:
        """Notes what of a conversation, or of a plain text, is not learned as it is written.

        Returns: what the template does not write: tools, keys of messages.
        Raises: DataError: special tokens are in it and refused, or the template does not write its calls of tools.
        """
        self._where = where
        found = self._special.search("\n".join([text, *_collect_texts(conversation.messages)]))
        if found and self._special_tokens == "refuse":
            raise DataError(
                f"holds the special token {found[0]}; {ROW_ADVICE}, or type task.special_tokens_in_text=escape: it is then read as plain text"
            )
        if found:
            self._note(f"special {found[0]}")
        conversation = self._add_tools(conversation)
        unwritten = self._template.list_unwritten(conversation) if self._template else _list_unwritten(conversation)
        for what in unwritten:
            self._note(f"unwritten {what}")
        return unwritten

    def prompt(self, given: Conversation) -> list[int]:
        """Token ids of a conversation up to the point where the answer begins. Raises: DataError: the template refuses it."""
        if self._template is not None and given:
            return self._ids(given, opened=True)
        return self.plain(_join_messages(given)) if given else []

    def answered(self, given: Conversation, answers: Sequence[Message]) -> tuple[list[int], list[list[int]]]:
        """Token ids of what is given, and of each answer to it up to the end of its turn; both together are the template's own rendering.

        Raises: DataError: the template refuses a conversation, or writes what is given otherwise once it is answered.
        """
        if self._template is None:
            if not given:
                raise DataError(
                    f"begins with an answer, which only a chat template can open, and the model has none; {ROW_ADVICE}"
                )
            return self.prompt(given), [self._ended(self._bare.of(one.text)) for one in answers]
        both = [given.followed_by(one) for one in answers]
        wholes = [self._ids(one) for one in both]
        start = min(self._start(given, one, ids) for one, ids in zip(both, wholes, strict=True))
        return wholes[0][:start], [whole[start:] for whole in wholes]

    def learned(self, whole: Conversation, ids: list[int], start: int, loss_on: str) -> list[Span]:
        """The spans of a conversation's ids that carry loss. `start`: where its last answer begins.

        Raises: DataError: an earlier answer cannot be found again.
        """
        marked = self._find_marked_spans(whole) if loss_on != "all" else []
        if loss_on == "completion":
            return _intersect_spans(marked, [(start, len(ids))]) if marked else [(start, len(ids))]
        left_out = [place for place in whole.answers if place in whole.unlearned]
        if loss_on == "assistant" and not marked:
            return [self._turn(whole, ids, place) for place in whole.answers if place not in left_out]
        return _subtract_spans(marked or [(0, len(ids))], [self._turn(whole, ids, place) for place in left_out])

    def plain(self, text: str) -> list[int]:
        """Token ids of a plain text with what the tokenizer puts in front of it, and no end token behind."""
        ids, end = self._plain.of(text), self.tokenizer.eos_token_id
        if end is None or ids[-1:] != [end]:
            return ids
        bare = self._bare.of(text)
        return ids[:-1] if ids[len(ids) - 1 - len(bare) : -1] == bare else ids

    def text(self, text: str) -> list[int]:
        """Token ids of a plain text that is learned as it is, with an end token behind."""
        return self._ended(self.plain(text))

    def report_remarks(self, which: str) -> None:
        """Says what was noted of these rows, and forgets it."""
        for what, rows in self._remarks.items():
            kind, name = what.split(" ", 1)
            console.print_info(f"data: {self._said(kind, name)} ({len(rows)} {which} rows, the first: {rows[0]})")
        self._remarks.clear()

    def _said(self, kind: str, name: str) -> str:
        if kind == "parting":
            return f"the template opens an answer with {name}, which it does not write before a finished one; learned is what it writes"
        if kind == "across":
            return (
                f"an answer's first token begins with {name}, which a prompt ends with, so what is prompted is not quite what was learned to be "
                "answered; begin answers without blanks"
            )
        if kind == "unwritten":
            by = "by the model's chat template" if self._template else "for a model without a chat template"
            return f"{name} is not written {by}, so nothing is learned of it"
        if self._special_tokens == "escape":
            return f"{name} in the text is read as plain text"
        return (
            f"{name} in the text is read as the model's special token (task.special_tokens_in_text=escape reads it as text, "
            "refuse ends the run)"
        )

    def _note(self, what: str) -> None:
        rows = self._remarks.setdefault(what, [])
        if self._where not in rows[-1:]:
            rows.append(self._where)

    def _add_tools(self, conversation: Conversation) -> Conversation:
        tools = conversation.tools or self._tools
        return Conversation(conversation.messages, tools, conversation.unlearned)

    def _ids(self, conversation: Conversation, opened: bool = False) -> list[int]:
        assert self._template is not None
        return self._template.ids(self._add_tools(conversation), opened, escaping=self._needs_escaping(conversation))

    def _needs_escaping(self, conversation: Conversation) -> bool:
        if self._special_tokens != "escape":
            return False
        return self._special.search("\n".join(_collect_texts(conversation.messages))) is not None

    def _ended(self, ids: list[int]) -> list[int]:
        end = end_tokens.require_eos_token_id(self.tokenizer)
        return ids if ids[-1:] == [end] else [*ids, end]

    def _find_marked_spans(self, whole: Conversation) -> list[Span]:
        if self._template is None or not whole or self._needs_escaping(whole):
            return []
        return self._template.find_assistant_spans(self._add_tools(whole))

    def _start(self, given: Conversation, whole: Conversation, ids: list[int]) -> int:
        """Where the answer to `given` begins in the ids of a conversation that goes on from there.

        Where the two part before the prompt's end, a token may reach across it, or the template may open an answer that is to come otherwise
        than one that is there.
        """
        assert self._template is not None
        if not given:  # the first message: it begins where a change of its beginning is seen
            return count_common_prefix(
                ids, self._ids(_replace_message(whole, 0, _perturb_message(whole.messages[0], front=True)))
            )
        prompt = self.prompt(given)
        start = count_common_prefix(prompt, ids)
        if start == len(prompt):
            return start
        opened, finished = (self._template.text(self._add_tools(one), opened=one is given) for one in (given, whole))
        if finished.startswith(opened):
            self._note(f"across {self.tokenizer.decode(prompt[start:])!r}")
            return start
        if start < self._find_content_end(given, prompt):
            raise DataError(
                "the model's chat template writes what is given otherwise once it is answered, so the answer cannot be told apart; "
                "choose a model with another template"
            )
        self._note(f"parting {self.tokenizer.decode(prompt[start:])!r}")
        return start

    def _find_content_end(self, given: Conversation, prompt: list[int]) -> int:
        """Where the last given message's own content ends in the prompt, at the latest."""
        other = given.before(len(given.messages) - 1).followed_by(_perturb_message(given.messages[-1]))
        return count_common_prefix(prompt, self.prompt(other))

    def _turn(self, whole: Conversation, ids: list[int], place: int) -> Span:
        """Where the assistant's message at this place lies in a conversation's ids, with the end of its turn."""
        if self._template is None:
            raise DataError(AMBIGUOUS_ANSWER)
        given = whole.before(place)
        through = self._ids(given.followed_by(whole.messages[place]))
        start = self._start(given, whole, ids)
        if ids[: len(through)] == through:
            return start, len(through)
        # The template writes the turn otherwise once others follow: where does what a change of the message moves come to an end?
        changed = _perturb_message(whole.messages[place])
        here = end_tokens.count_common_suffix(ids, self._ids(_replace_message(whole, place, changed)))
        last = end_tokens.count_common_suffix(through, self._ids(given.followed_by(changed)))
        if here == len(ids) or last == len(through):
            raise DataError(AMBIGUOUS_ANSWER)
        end = len(ids) - here
        end += count_common_prefix(ids[end:], through[len(through) - last :])
        if end <= start:
            raise DataError(AMBIGUOUS_ANSWER)
        return start, end


def _list_unwritten(conversation: Conversation) -> list[str]:
    """What is lost where there is no chat template. Raises: DataError: calls of tools are."""
    if conversation.calls_tools:
        raise DataError(
            f"has tool_calls, and the model has no chat template that could write them; choose another model, or {ROW_ADVICE}"
        )
    return [*list_extra_keys(conversation), *(["tools"] if conversation.tools else [])]


def _join_messages(given: Conversation) -> str:
    """What is given to a model without a chat template."""
    return "\n".join(one.text for one in given.messages) + "\n"


def count_common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many tokens two lists, or characters two texts, have in common at their beginnings."""
    pairs = zip(one, other, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _collect_texts(found: Any) -> Iterable[str]:
    """Every text in messages, however deep."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict | list | tuple):
        for one in found.values() if isinstance(found, dict) else found:
            yield from _collect_texts(one)


def _perturb_message(message: Message, front: bool = False) -> Message:
    """The message with another text, and calls of other functions."""
    text = message.text
    calls = [
        {**one, "function": {**one["function"], "name": one["function"]["name"] + "x"}} for one in message.get("tool_calls", [])
    ]  # fmt: skip
    content = {"content": f"x{text}" if front else f"{text} x"} if text else {}
    return Message({**message, **content, **({"tool_calls": calls} if calls else {})})


def _replace_message(whole: Conversation, place: int, message: Message) -> Conversation:
    messages = (*whole.messages[:place], message, *whole.messages[place + 1 :])
    return Conversation(messages, whole.tools)


def _intersect_spans(some: list[Span], others: list[Span]) -> list[Span]:
    found = [(max(a, c), min(b, d)) for a, b in some for c, d in others]
    return [(a, b) for a, b in found if a < b]


def _subtract_spans(some: list[Span], others: list[Span]) -> list[Span]:
    for start, end in others:
        some = [part for a, b in some for part in ((a, min(b, start)), (max(a, end), b)) if part[0] < part[1]]
    return some
