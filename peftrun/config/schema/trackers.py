"""Experiment trackers: `tracker`. Light. API keys and passwords are never config values: the libraries read them from the environment."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from peftrun.config.schema.actions import Path
from peftrun.config.schema.lora import STRICT

Project = Annotated[str, Field(min_length=1, pattern=r"^[\w. -]+$", examples=["peftrun"])]
RunName = Annotated[str, Field(min_length=1, pattern=r"^[\w. -]+$", examples=["first"])] | None


@dataclass(config=STRICT)
class NoTracker:
    """The run folder only: record.json and metrics.jsonl."""

    name: Literal["none"]


@dataclass(config=STRICT)
class TensorBoardTracker:
    """Event files on this disk."""

    name: Literal["tensorboard"]
    run_name: RunName  # null: the run folder's name
    folder: Path | None  # null: tensorboard/ in the run folder


@dataclass(config=STRICT)
class TrackioTracker:
    """A SQLite file on this disk, with a dashboard on this machine."""

    name: Literal["trackio"]
    project: Project
    run_name: RunName  # null: the run folder's name
    folder: Path  # shared by all runs, so that they can be compared
    log_adapter: bool  # also store a copy of the adapter there


@dataclass(config=STRICT)
class MlflowTracker:
    """A SQLite file on this disk, or a tracking server."""

    name: Literal["mlflow"]
    project: Project  # MLflow's experiment
    run_name: RunName  # null: the run folder's name
    folder: Path  # shared by all runs; not used where uri names a store
    uri: str | None  # tracking server or database; null: a file in `folder`
    log_adapter: bool  # also store a copy of the adapter there


@dataclass(config=STRICT)
class WandbTracker:
    """Files that `wandb sync` uploads, or Weights & Biases itself."""

    name: Literal["wandb"]
    project: Project
    run_name: RunName  # null: the run folder's name
    entity: str | None  # a team; null: your default
    mode: Literal["offline", "online"]
    folder: Path  # shared by all runs
    log_adapter: bool  # also store a copy of the adapter there


Tracker = Annotated[
    NoTracker | TensorBoardTracker | TrackioTracker | MlflowTracker | WandbTracker, Field(discriminator="name")
]
