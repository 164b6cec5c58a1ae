"""Streaming detokenization: text from tokens as they come, in whole characters, up to a stop string."""

from typing import Any

REPLACEMENT_CHARACTER = "\ufffd"  # what a tokenizer decodes bytes to that are not a whole character


class StreamDetokenizer:
    """The text of one answer. What `add_token` and `flush_text` return, joined, is its text up to the first stop string.

    Only a window of the latest tokens is decoded, so that the cost of a token does not grow with the answer.
    """

    def __init__(self, tokenizer: Any, stops: list[str]) -> None:
        self.stopped = False
        self._tokenizer, self._stops, self._ids = tokenizer, stops, list[int]()
        # Tokens: where the window starts, and where it will start next. Characters of the window: how many are emitted.
        self._start, self._next_start, self._emitted = 0, 0, 0
        self._pending = ""  # text that may be the beginning of a stop string

    def add_token(self, token: int) -> str:
        """The text that can be emitted after this token; sets `stopped` if it completes a stop string."""
        self._ids.append(token)
        text = self._decode_window()
        new_text = self._take_new_text(text.rstrip(REPLACEMENT_CHARACTER))
        if not text.endswith(REPLACEMENT_CHARACTER):
            # A tokenizer may decode a token differently at the start of a text, so the new window starts at the last
            # position but one at which all characters were whole: its first part is only context.
            self._start, self._next_start = self._next_start, len(self._ids)
            self._emitted = len(self._decode_window())
        return self._cut_at_stop(new_text)

    def flush_text(self) -> str:
        """The rest of the text, once there are no more tokens."""
        if self.stopped:
            return ""
        text = self._cut_at_stop(self._take_new_text(self._decode_window()))
        pending, self._pending = self._pending, ""
        return text + pending

    def _decode_window(self) -> str:
        return str(
            self._tokenizer.decode(
                self._ids[self._start :], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _take_new_text(self, text: str) -> str:
        new_text, self._emitted = text[self._emitted :], max(self._emitted, len(text))
        return new_text

    def _cut_at_stop(self, new_text: str) -> str:
        """The text up to a stop string, less an end of it that may be the beginning of one."""
        text = self._pending + new_text
        positions = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if positions:
            self.stopped, self._pending = True, ""
            return text[: min(positions)]
        # How many of the last characters may be the beginning of a stop string.
        longest = min(max(map(len, self._stops), default=1) - 1, len(text))
        sizes = (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops))
        size = next(sizes, 0)
        self._pending = text[len(text) - size :]
        return text[: len(text) - size]
