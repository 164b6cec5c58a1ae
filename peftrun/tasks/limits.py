"""Rows that a model cannot read, or has nothing to learn from."""

from typing import Any

from peftrun.errors import DataError

IGNORED = -100  # label of what carries no loss


def check(rows: Any, base: Any) -> None:
    """Every row, training rows first.

    Raises: DataError: one has more tokens than the base has positions, a token that the base does not embed, or no label; the first
        is named.
    """
    positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    for row in (*rows.train, *rows.held_out):
        if positions is not None and len(row.ids) > positions:
            raise DataError(
                f"{row.where}: has {len(row.ids)} tokens, and {base.name} reads {positions}; type task.max_length={positions}"
            )
        check_embedded([*row.ids, *getattr(row, "target", ())], base, row.where)
        labels = getattr(row, "labels", None)
        if isinstance(labels, list) and all(label == IGNORED for label in labels):
            raise DataError(
                f"{row.where}: nothing in it is learned, every label is masked; raise task.max_length, or remove the row"
            )


def check_embedded(ids: list[int], base: Any, where: str) -> None:
    """Raises: DataError: a token lies beyond the embeddings of the base."""
    embedded, highest = base.model.get_input_embeddings().weight.shape[0], max(ids, default=0)
    if highest >= embedded:
        raise DataError(
            f"{where}: token {highest} ({base.tokenizer.convert_ids_to_tokens(highest)!r}) lies beyond the {embedded} that {base.name} embeds; "
            "restore the tokenizer that belongs to the model, or remove the text"
        )
