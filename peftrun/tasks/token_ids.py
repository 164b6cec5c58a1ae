"""Texts as token ids, many in one call: a call for each text costs more than its tokens."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

PARALLELISM_VARIABLE, OFF = "TOKENIZERS_PARALLELISM", "off"  # as `runs.execute` sets it; a user would type false
BATCH_SIZE = 1000  # texts that are Python objects at a time
Item = TypeVar("Item")


class TokenIds:
    """What a tokenizer makes of texts. Those that were read ahead are known already; any other is read when it is asked for."""

    def __init__(self, tokenizer: Any, **how: Any) -> None:
        """`how`: handed to the tokenizer with every text."""
        self._tokenizer, self._options = tokenizer, how
        self._known: dict[str, list[int]] = {}

    def read_ahead(self, texts: Iterable[str]) -> None:
        """Reads these texts together, and forgets those before."""
        wanted = list(dict.fromkeys(texts))
        with _enable_parallelism():
            ids = self._tokenizer(wanted, return_attention_mask=False, **self._options)["input_ids"] if wanted else []
        self._known = dict(zip(wanted, ids, strict=True))

    def of(self, text: str) -> list[int]:
        """The ids of a text."""
        known = self._known.get(text)
        return list(self._tokenizer(text, **self._options)["input_ids"] if known is None else known)


@contextmanager
def _enable_parallelism() -> Iterator[None]:
    """Lets the tokenizer use every processor, unless the user has said otherwise. Processes that are forked later find it switched off again."""
    before = os.environ.get(PARALLELISM_VARIABLE)
    if before != OFF:
        yield
        return
    os.environ[PARALLELISM_VARIABLE] = "true"
    try:
        yield
    finally:
        os.environ[PARALLELISM_VARIABLE] = before


def batch_items(found: Iterable[Item]) -> Iterator[list[Item]]:
    """So many at a time as are read together."""
    rest = iter(found)
    while part := list(islice(rest, BATCH_SIZE)):
        yield part
