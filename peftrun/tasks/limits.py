"""Rows that are longer than a model can read."""

from typing import Any

from peftrun.errors import DataError


def check(rows: Any, model: Any, name: str) -> None:
    """Every row that is known as token ids, training rows first.

    Raises: DataError: one has more tokens than the model has positions; the first is named.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    for which, part in (("training", rows.train), ("held-out", rows.held_out)):
        for number, row in enumerate(part, 1):
            length = len(getattr(row, "ids", []))
            if length > positions:
                raise DataError(
                    f"{which} row {number}: has {length} tokens, and {name} reads {positions}; type task.max_length={positions}"
                )
