"""What tasks need of a base model to make and check rows. Light."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenizerInfo:
    """What reads rows: a base's tokenizer, its transformers config, how many tokens it embeds, and how many an adapter puts before each text."""

    name: str
    tokenizer: Any
    config: Any
    embedded: int
    virtual: int = 0

    @property
    def positions(self) -> int | None:
        """Tokens of a text that can be read; None where the base does not say."""
        most = get_max_positions(self.config)
        return None if most is None else most - self.virtual


def get_max_positions(config: Any) -> int | None:
    """Longest text in tokens that a base model reads; None if its config does not say."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None
