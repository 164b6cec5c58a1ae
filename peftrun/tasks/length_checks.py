"""Rows that a model cannot read, or has nothing to learn from."""

from typing import Any

from peftrun.errors import DataError
from peftrun.models.reader import TokenizerInfo, get_max_positions

IGNORE_INDEX = -100  # label of what carries no loss


def build_reader(base: Any, virtual: int = 0) -> TokenizerInfo:
    """A base that is loaded. Args: virtual: see `Reader`."""
    embedded = base.model.get_input_embeddings().weight.shape[0]
    return TokenizerInfo(base.name, base.tokenizer, base.model.config, embedded, virtual)


def check_lengths(rows: Any, reader: TokenizerInfo) -> None:
    """Every row, training rows first.

    Raises: DataError: one has more tokens than the base has positions, a token that the base does not embed, or no label; the first
        is named.
    """
    most = reader.positions
    for row in (*rows.train, *rows.held_out):
        longest = max([len(row.ids), *(len(row.prompt) + len(one) for one in getattr(row, "candidates", ()))])
        if most is not None and longest > most:
            raise DataError(_too_long(row.where, longest, most, reader))
        check_vocab_ids([*row.ids, *getattr(row, "target", ())], reader, row.where)
        labels = getattr(row, "labels", None)
        if isinstance(labels, list) and all(label == IGNORE_INDEX for label in labels):
            raise DataError(
                f"{row.where}: nothing in it is learned, every label is masked; raise task.max_length, or remove the row"
            )


def _too_long(where: str, tokens: int, most: int, reader: TokenizerInfo) -> str:
    if most < 1:
        return f"lora.num_virtual_tokens={reader.virtual}: {reader.name} reads {most + reader.virtual} tokens, so no text would fit beside them; type fewer"
    beside = f" after {reader.virtual} of the adapter (num_virtual_tokens)" if reader.virtual else ""
    return f"{where}: has {tokens} tokens, and {reader.name} reads {most}{beside}; type task.max_length={most}"


def positions(model: Any) -> int | None:
    """Tokens that a model reads, prompt and answer together, beside those that its adapters put before them; None where it does not say."""
    most = get_max_positions(model.config)
    return None if most is None else most - _virtual(model)


def _virtual(model: Any) -> int:
    """Tokens that the adapters of a model put before each text."""
    known = getattr(model, "peft_config", {}).values()
    return max((getattr(one, "num_virtual_tokens", None) or 0 for one in known), default=0)


def count_free_positions(model: Any, prompt: list[int]) -> int | None:
    """Tokens that may be written in answer to a prompt; None where the model does not say how many it reads."""
    return _count_free_positions(model.config, positions(model), prompt)


def _count_free_positions(config: Any, most: int | None, prompt: list[int]) -> int | None:
    if most is None:
        return None
    return most - (1 if config.is_encoder_decoder else len(prompt))  # a decoder of its own begins anew, with one token


def check_completion_fits(rows: Any, reader: TokenizerInfo, asked: int) -> None:
    """Raises: DataError: an answer of so many tokens to a row's prompt does not fit into the base's positions; the first is named."""
    for row in (*rows.train, *rows.held_out):
        left = _count_free_positions(reader.config, reader.positions, row.ids)
        if left is not None and left < asked:
            raise DataError(
                f"{row.where}: has {len(row.ids)} tokens, and with task.objective.max_completion_length={asked} more {reader.name} would read more than its "
                f"{reader.positions}; type task.objective.max_completion_length={left}, or a smaller task.max_length"
                if left > 0
                else f"{row.where}: has {len(row.ids)} tokens, all that {reader.name} reads, and nothing could be written; type a smaller task.max_length"
            )


def check_vocab_ids(ids: list[int], reader: TokenizerInfo, where: str) -> None:
    """Raises: DataError: a token lies beyond the embeddings of the base."""
    highest = max(ids, default=0)
    if highest >= reader.embedded:
        raise DataError(
            f"{where}: token {highest} ({reader.tokenizer.convert_ids_to_tokens(highest)!r}) lies beyond the {reader.embedded} that {reader.name} embeds; "
            "restore the tokenizer that belongs to the model, or remove the text"
        )
