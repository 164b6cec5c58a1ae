"""Rows as they will be learned: their text with what is learned of it, their tokens, and what became of every row of the data. No torch."""
