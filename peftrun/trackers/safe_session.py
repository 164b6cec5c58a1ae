"""Between a training and its tracker: what goes wrong there, what is printed there and what is drawn there leaves the training alone. Light."""

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
    """A tracker's session that fails once at most: then it is told, and nothing is asked of it any more."""

    def __init__(self, name: str, session: Session) -> None:
        self.name, self.id = name, session.id
        self.session: Session | None = session

    @classmethod
    def opened(cls, spec: Any, run: Run) -> "SafeSession":
        """Raises: ConfigError: the tracker's library refuses, with its reason."""
        try:
            with _isolate_side_effects():
                return cls(spec.name, import_module(f"peftrun.trackers.{spec.name}").opened(spec, run))
        except ConfigError:
            raise
        except Exception as error:  # the libraries raise what they like
            raise ConfigError(f"{_describe_failure(spec, error)}; mend that, or type tracker=none") from error

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl."""
        self._call_session(lambda session: session.log(extract_metrics(row), int(row["step"])))

    def pause(self) -> None:
        """See `Session.pause`."""
        self._call_session(lambda session: session.pause())

    def end(self, outcome: Outcome) -> None:
        """See `Session.end`."""
        self._call_session(lambda session: session.end(outcome))

    def _call_session(self, what: Callable[[Session], None]) -> None:
        if self.session is None:
            return
        try:
            with _isolate_side_effects():
                what(self.session)
        except Exception as error:
            self.session = None
            console.print_warning(
                f"tracker={self.name}: {explain_error(error)}; the run goes on without it, metrics.jsonl has every row"
            )


@contextlib.contextmanager
def _isolate_side_effects() -> Iterator[None]:
    """The numbers that a training draws stay its own, and nothing is printed."""
    drawn = random.getstate()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(drawn)


def _describe_failure(spec: Any, error: Exception) -> str:
    """The folder, where a file in it was refused; else the tracker."""
    if isinstance(error, OSError) and error.filename is not None and getattr(spec, "folder", None):
        return f"tracker.folder={spec.folder}: cannot be written ({explain_error(error)})"
    return f"tracker.name={spec.name}: cannot begin: {explain_error(error)}"
