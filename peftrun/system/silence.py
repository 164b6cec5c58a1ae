"""Suppresses what libraries print while they load models."""

import contextlib
import io
from typing import Any

from transformers.utils import logging


@contextlib.contextmanager
def suppress_output() -> Any:
    """Discards stdout and stderr within the block (progress bars), and transformers' warnings, such as those of an untrained head."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
