"""TensorBoard: event files in the run folder, or in one folder for all runs and sweeps. Light until a tracker starts."""

import json
from pathlib import Path
from typing import Any

from peftrun.config.schema.trackers import TensorBoardTracker
from peftrun.formatting import format_value
from peftrun.trackers.base import Outcome, Run

EVENTS_DIR = "tensorboard"  # in the run folder


class _TensorBoardSession:
    def __init__(self, writer: Any, log_dir: Path) -> None:
        self.writer, self.id = writer, str(log_dir)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # so that a viewer shows the run while it trains

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
    """A session that writes event files."""
    from torch.utils.tensorboard import SummaryWriter

    log_dir = run.folder / EVENTS_DIR
    if spec.folder is not None:
        log_dir = Path(spec.folder).expanduser() / (run.group or "") / run.name
    # TensorBoard hides what an earlier attempt has logged after the checkpoint.
    writer = SummaryWriter(str(log_dir), purge_step=run.step + 1 if run.id else None)
    if run.id is None:
        writer.add_text(
            "config", _indent_markdown("\n".join(f"{key}={format_value(value)}" for key, value in run.config.items()))
        )
        writer.add_text("differs", _indent_markdown("\n".join(run.differs)))
    writer.flush()
    return _TensorBoardSession(writer, log_dir)


def _indent_markdown(text: str) -> str:
    # TensorBoard renders Markdown, where four spaces mark preformatted text.
    return "\n".join(f"    {line}" for line in text.splitlines())
