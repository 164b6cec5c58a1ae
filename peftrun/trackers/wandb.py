"""Weights & Biases: local files for `wandb sync`, or online. Light until a tracker starts."""

import os
import uuid
from pathlib import Path
from typing import Any

from peftrun.config.schema.trackers import WandbTracker
from peftrun.trackers.base import Outcome, Run, summarize_record

STEP_METRIC = "train/global_step"  # as transformers' callback names it
EXIT_CODES = {"completed": 0, "stopped": 0, "interrupted": 255}  # others: 1


class _WandbSession:
    def __init__(self, run: Any, spec: WandbTracker) -> None:
        self.run, self.id, self.spec = run, run.id, spec

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log({**values, STEP_METRIC: step})

    def pause(self) -> None:
        self.run.finish(exit_code=0)

    def end(self, outcome: Outcome) -> None:
        self.run.summary.update({name: value for name, (value, _) in outcome.figures.items()})
        self.run.summary.update(
            {f"run/{key}": value for key, value in summarize_record(outcome.record).items()}
            | {"run/status": outcome.status}
        )
        import wandb

        artifact = wandb.Artifact(f"run-{self.id}", type="run")
        for file in outcome.files:
            artifact.add_file(str(file))
        if outcome.adapter and self.spec.log_adapter:
            artifact.add_dir(str(outcome.adapter), name=outcome.adapter.name)
        self.run.log_artifact(artifact)
        self.run.finish(exit_code=EXIT_CODES.get(outcome.status, 1))


def opened(spec: WandbTracker, run: Run) -> _WandbSession:
    """A session with its own run. An offline run that is continued is a second file with the same id."""
    folder = Path(spec.folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # By default wandb also writes below the home directory.
    folders = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    for key, value in {"WANDB_ERROR_REPORTING": "false", **folders}.items():
        os.environ.setdefault(key, value)
    import wandb

    wandb_run = wandb.init(
        project=spec.project,
        entity=spec.entity,
        name=run.name,
        group=run.group,
        notes=" ".join(run.differs),
        id=run.id or uuid.uuid4().hex[:12],
        resume="allow" if spec.mode == "online" else None,
        config=run.config,
        dir=str(folder),
        mode=spec.mode,
        reinit="create_new",  # runs of other cells in this process stay open
        settings=wandb.Settings(  # nothing about this machine, its code or its output is logged
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            init_timeout=60,  # seconds
        ),
    )
    wandb_run.define_metric(STEP_METRIC)
    wandb_run.define_metric("*", step_metric=STEP_METRIC, step_sync=True)  # all curves over the training step
    return _WandbSession(wandb_run, spec)
