"""Batched tokenization: a call per text costs more than the tokens in it."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

PARALLELISM_VARIABLE, OFF = "TOKENIZERS_PARALLELISM", "off"  # as `runs.execute` sets it; a user would type false
BATCH_SIZE = 1000  # texts in one call, which bounds the memory for Python objects
Item = TypeVar("Item")


class TokenIds:
    """Token ids of texts. Texts that were read ahead are cached; any other is tokenized on demand."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        """`options`: passed to the tokenizer with every text."""
        self._tokenizer, self._options = tokenizer, options
        self._cache: dict[str, list[int]] = {}

    def read_ahead(self, texts: Iterable[str]) -> None:
        """Tokenizes these texts in one call, in place of the earlier ones."""
        unique = list(dict.fromkeys(texts))
        # The tokenizer may use all processors, unless the user has set the variable.
        is_off = os.environ.get(PARALLELISM_VARIABLE) == OFF
        if is_off:
            os.environ[PARALLELISM_VARIABLE] = "true"
        try:
            ids = self._tokenizer(unique, return_attention_mask=False, **self._options)["input_ids"] if unique else []
        finally:
            if is_off:  # off again for processes forked later: the threads do not survive
                os.environ[PARALLELISM_VARIABLE] = OFF
        self._cache = dict(zip(unique, ids, strict=True))

    def of(self, text: str) -> list[int]:
        """The ids of a text."""
        cached = self._cache.get(text)
        return list(self._tokenizer(text, **self._options)["input_ids"] if cached is None else cached)


def batch_items(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of BATCH_SIZE items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_SIZE)):
        yield batch
