"""Isolates a training from its tracker: from its errors, its output and its use of random numbers. Light."""

import contextlib
import io
import random
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from peftrun import console
from peftrun.errors import ConfigError
from peftrun.trackers.base import Outcome, Run, Session, explain_error, extract_metrics


class SafeSession:
    """A tracker's session that cannot fail the run: its first error is logged as a warning, and the session is dropped."""

    def __init__(self, name: str, session: Session) -> None:
        self.name, self.id = name, session.id
        self.session: Session | None = session

    @classmethod
    def opened(cls, spec: Any, run: Run) -> "SafeSession":
        """Opens the session of a tracker. Raises: ConfigError: the tracker's library fails, with its reason."""
        try:
            with _isolate_side_effects():
                return cls(spec.name, import_module(f"peftrun.trackers.{spec.name}").opened(spec, run))
        except ConfigError:
            raise
        except Exception as error:  # the libraries have no common base class of errors
            reason = explain_error(error)
            if isinstance(error, OSError) and error.filename is not None and getattr(spec, "folder", None):
                problem = f"tracker.folder={spec.folder}: cannot be written ({reason})"
            else:
                problem = f"tracker.name={spec.name}: cannot start: {reason}"
            raise ConfigError(f"{problem}; fix that, or type tracker=none") from error

    def log(self, row: dict[str, Any]) -> None:
        """Logs a row of metrics.jsonl."""
        self._call_session(lambda session: session.log(extract_metrics(row), int(row["step"])))

    def pause(self) -> None:
        """See `Session.pause`."""
        self._call_session(lambda session: session.pause())

    def end(self, outcome: Outcome) -> None:
        """See `Session.end`."""
        self._call_session(lambda session: session.end(outcome))

    def _call_session(self, call: Callable[[Session], None]) -> None:
        if self.session is None:
            return
        try:
            with _isolate_side_effects():
                call(self.session)
        except Exception as error:
            self.session = None
            console.print_warning(
                f"tracker={self.name}: {explain_error(error)}; the run goes on without it, metrics.jsonl has every row"
            )


@contextlib.contextmanager
def _isolate_side_effects() -> Iterator[None]:
    """Restores Python's random state and discards output."""
    # The libraries draw ids and names from `random`, so without this the run would not be reproducible with a tracker.
    state = random.getstate()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(state)
