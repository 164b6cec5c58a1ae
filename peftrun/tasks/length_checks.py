"""Checks of rows against the base model: positions, vocabulary, and labels to train on."""

from typing import Any

from peftrun.errors import DataError
from peftrun.models.reader import TokenizerInfo, get_max_positions

IGNORE_INDEX = -100  # label of tokens without loss, the default of torch's cross-entropy


def build_reader(base: Any, virtual: int = 0) -> TokenizerInfo:
    """What is needed of a loaded base model. Args: virtual: see `TokenizerInfo`."""
    vocab_size = base.model.get_input_embeddings().weight.shape[0]  # the weight is (vocab, hidden)
    return TokenizerInfo(base.name, base.tokenizer, base.model.config, vocab_size, virtual)


def check_lengths(rows: Any, reader: TokenizerInfo) -> None:
    """Checks every row, training rows first.

    Raises: DataError: a row has more tokens than the base model has positions, a token without an embedding, or no label. It names
        the first such row.
    """
    limit = reader.positions
    for row in (*rows.train, *rows.held_out):
        longest = max([len(row.ids), *(len(row.prompt) + len(ids) for ids in getattr(row, "candidates", ()))])
        if limit is not None and longest > limit:
            if limit < 1:
                raise DataError(
                    f"lora.num_virtual_tokens={reader.virtual}: {reader.name} reads {limit + reader.virtual} tokens, so no text would fit beside them; type fewer"
                )
            after = f" after {reader.virtual} of the adapter (num_virtual_tokens)" if reader.virtual else ""
            raise DataError(
                f"{row.where}: has {longest} tokens, and {reader.name} reads {limit}{after}; type task.max_length={limit}"
            )
        check_vocab_ids([*row.ids, *getattr(row, "target", ())], reader, row.where)
        labels = getattr(row, "labels", None)
        if isinstance(labels, list) and all(label == IGNORE_INDEX for label in labels):
            raise DataError(
                f"{row.where}: nothing in it is learned, every label is masked; raise task.max_length, or remove the row"
            )


def positions(model: Any) -> int | None:
    """Number of tokens that a model can read, prompt and answer together, after the virtual tokens of its adapters; None if unlimited."""
    limit = get_max_positions(model.config)
    if limit is None:
        return None
    configs = getattr(model, "peft_config", {}).values()
    # A row goes through one adapter, so the largest count is the bound, not the sum.
    return limit - max((getattr(config, "num_virtual_tokens", None) or 0 for config in configs), default=0)


def count_free_positions(model: Any, prompt: list[int]) -> int | None:
    """Number of tokens that can be generated after a prompt; None if the model has no limit."""
    return _subtract_prompt(model.config, positions(model), prompt)


def _subtract_prompt(config: Any, limit: int | None, prompt: list[int]) -> int | None:
    if limit is None:
        return None
    return limit - (1 if config.is_encoder_decoder else len(prompt))  # a separate decoder starts with one token


def check_completion_fits(rows: Any, reader: TokenizerInfo, length: int) -> None:
    """Raises: DataError: a completion of `length` tokens does not fit after a row's prompt; it names the first such row."""
    for row in (*rows.train, *rows.held_out):
        left = _subtract_prompt(reader.config, reader.positions, row.ids)
        if left is not None and left < length:
            raise DataError(
                f"{row.where}: has {len(row.ids)} tokens, and with task.objective.max_completion_length={length} more {reader.name} would read more than its "
                f"{reader.positions}; type task.objective.max_completion_length={left}, or a smaller task.max_length"
                if left > 0
                else f"{row.where}: has {len(row.ids)} tokens, all that {reader.name} reads, so no completion fits; type a smaller task.max_length"
            )


def check_vocab_ids(ids: list[int], reader: TokenizerInfo, where: str) -> None:
    """Raises: DataError: the embeddings of the base model have no row for a token."""
    highest = max(ids, default=0)
    if highest >= reader.embedded:
        raise DataError(
            f"{where}: token {highest} ({reader.tokenizer.convert_ids_to_tokens(highest)!r}) is beyond the {reader.embedded} embeddings of {reader.name}; "
            "restore the tokenizer that belongs to the model, or remove the text"
        )
