"""Text out of tokens as they come: whole characters only, and nothing of a stop string."""

from typing import Any

REPLACEMENT_CHARACTER = "\ufffd"  # what a tokenizer shows for bytes that are no whole character


class StreamDetokenizer:
    """One answer's text. What `add` and `end` return, joined, is the whole text up to the first stop string."""

    def __init__(self, tokenizer: Any, stops: list[str]) -> None:
        self.stopped = False
        self._tokenizer, self._stops, self._ids = tokenizer, stops, list[int]()
        self._start, self._emitted, self._prefix_end, self._pending = 0, 0, 0, ""

    def add_token(self, token: int) -> str:
        """What can be told once this token is there; sets `stopped` where a stop string has been written."""
        self._ids.append(token)
        text = self._decode_window()
        found = self._take_new_text(text.rstrip(REPLACEMENT_CHARACTER))
        if not text.endswith(REPLACEMENT_CHARACTER):
            self._advance_window()
        return self._cut_at_stop(found)

    def flush_text(self) -> str:
        """What is left to be told."""
        if self.stopped:
            return ""
        found = self._cut_at_stop(self._take_new_text(self._decode_window()))
        held, self._pending = self._pending, ""
        return found + held

    def _decode_window(self) -> str:
        return str(
            self._tokenizer.decode(
                self._ids[self._start :], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _take_new_text(self, text: str) -> str:
        found, self._emitted = text[self._emitted :], max(self._emitted, len(text))
        return found

    def _advance_window(self) -> None:
        """A tokenizer may write a token otherwise at the start: from now on decode from the last place but one where all was whole."""
        self._start, self._prefix_end = self._prefix_end, len(self._ids)
        self._emitted = len(self._decode_window())

    def _cut_at_stop(self, found: str) -> str:
        text = self._pending + found
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._pending = True, ""
            return text[: min(places)]
        kept = max((_count_stop_prefix(text, stop) for stop in self._stops), default=0)
        self._pending = text[len(text) - kept :]
        return text[: len(text) - kept]


def _count_stop_prefix(text: str, stop: str) -> int:
    """How many of the last characters may be the beginning of the stop string."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
