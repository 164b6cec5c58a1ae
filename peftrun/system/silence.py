"""Silence for libraries that print while they work."""

import contextlib
import io
from typing import Any

from transformers.utils import logging


@contextlib.contextmanager
def suppress_output() -> Any:
    """Progress bars of the libraries, and what they say of a head that is not trained yet, go nowhere."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
