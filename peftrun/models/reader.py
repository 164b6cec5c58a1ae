"""What tasks need to know of a base model to build and check rows. Light."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenizerInfo:
    """What tokenizes and checks rows.

    Attributes:
        name: the base model's, portable.
        embedded: tokens that the base model has embeddings of.
        virtual: virtual tokens that the adapter prepends to each text.
    """

    name: str
    tokenizer: Any
    config: Any
    embedded: int
    virtual: int = 0

    @property
    def positions(self) -> int | None:
        """Most tokens of a text; None where the base model's config has no limit."""
        limit = get_max_positions(self.config)
        return None if limit is None else limit - self.virtual


def get_max_positions(config: Any) -> int | None:
    """`max_position_embeddings` of a config (of its text part, if it has several); None if it has no such limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None
