"""lm_eval 0.4 and datasets 5: where they keep prepared rows, which they read from the environment once, at import."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def prepare_rows_in(folder: Path) -> Iterator[None]:
    """Inside, datasets prepares rows in this folder, and lm_eval does not run git, which prints an error outside a repository."""
    import datasets
    from lm_eval import evaluator

    before = datasets.config.HF_DATASETS_CACHE, evaluator.get_git_commit_hash
    datasets.config.HF_DATASETS_CACHE, evaluator.get_git_commit_hash = folder, lambda: None
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE, evaluator.get_git_commit_hash = before
