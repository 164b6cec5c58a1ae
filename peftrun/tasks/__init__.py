"""What is learned: rows and metrics, one file a kind."""

from importlib import import_module
from types import ModuleType


def of_kind(kind: str) -> ModuleType:
    """The module of a task kind: `load_rows(task, tokenizer)` and `evaluate(model, tokenizer, rows, batch_size)`."""
    return import_module(f"peftrun.tasks.{kind}")
