"""TensorBoard: event files below the run folder, or below one folder that names runs and sweeps. Light until a tracker begins."""

import json
from pathlib import Path
from typing import Any

from peftrun.config.schema.trackers import TensorBoardTracker
from peftrun.trackers.base import Outcome, Run, format_value

EVENTS_DIR = "tensorboard"  # in the run folder


class _TensorBoardSession:
    def __init__(self, writer: Any, place: Path) -> None:
        self.writer, self.id = writer, str(place)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def pause(self) -> None:
        self.writer.close()

    def end(self, outcome: Outcome) -> None:
        for name, (value, step) in outcome.figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.add_text("status", outcome.status)
        self.writer.add_text(
            "record", _indent_markdown(json.dumps(outcome.record, indent=2, ensure_ascii=False, default=str))
        )
        self.writer.close()


def opened(spec: TensorBoardTracker, run: Run) -> _TensorBoardSession:
    """A writer of event files. What an earlier attempt has written past the checkpoint that the run goes on from is not shown."""
    from torch.utils.tensorboard import SummaryWriter

    place = _resolve_log_dir(spec, run)
    writer = SummaryWriter(str(place), purge_step=run.step + 1 if run.id else None)
    session = _TensorBoardSession(writer, place)
    if run.id is None:
        writer.add_text(
            "config", _indent_markdown("\n".join(f"{key}={format_value(value)}" for key, value in run.config.items()))
        )
        writer.add_text("differs", _indent_markdown("\n".join(run.differs)))
    writer.flush()
    return session


def _resolve_log_dir(spec: TensorBoardTracker, run: Run) -> Path:
    if spec.folder is None:
        return run.folder / EVENTS_DIR
    return Path(spec.folder).expanduser() / (run.group or "") / run.name


def _indent_markdown(text: str) -> str:
    """Text as it is: TensorBoard reads Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
