"""Text out of tokens as they come: whole characters only, and nothing of a stop string."""

from typing import Any

HALF = "\ufffd"  # what a tokenizer shows for bytes that are no whole character


class Writing:
    """One answer's text. What `add` and `end` return, joined, is the whole text up to the first stop string."""

    def __init__(self, tokenizer: Any, stops: list[str]) -> None:
        self.stopped = False
        self._tokenizer, self._stops, self._ids = tokenizer, stops, list[int]()
        self._start, self._told, self._whole, self._held = 0, 0, 0, ""

    def add(self, token: int) -> str:
        """What can be told once this token is there; sets `stopped` where a stop string has been written."""
        self._ids.append(token)
        text = self._decoded()
        found = self._next(text.rstrip(HALF))
        if not text.endswith(HALF):
            self._move_on()
        return self._without_stops(found)

    def end(self) -> str:
        """What is left to be told."""
        if self.stopped:
            return ""
        found = self._without_stops(self._next(self._decoded()))
        held, self._held = self._held, ""
        return found + held

    def _decoded(self) -> str:
        return str(
            self._tokenizer.decode(
                self._ids[self._start :], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _next(self, text: str) -> str:
        found, self._told = text[self._told :], max(self._told, len(text))
        return found

    def _move_on(self) -> None:
        """A tokenizer may write a token otherwise at the start: from now on decode from the last place but one where all was whole."""
        self._start, self._whole = self._whole, len(self._ids)
        self._told = len(self._decoded())

    def _without_stops(self, found: str) -> str:
        text = self._held + found
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        kept = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _begun(text: str, stop: str) -> int:
    """How many of the last characters may be the beginning of the stop string."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
