"""Weights & Biases: files for `wandb sync`, or sent as they come. Light until a tracker begins."""

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
        self._log_artifacts(outcome)
        self.run.finish(exit_code=EXIT_CODES.get(outcome.status, 1))

    def _log_artifacts(self, outcome: Outcome) -> None:
        import wandb

        kept = wandb.Artifact(f"run-{self.id}", type="run")
        for file in outcome.files:
            kept.add_file(str(file))
        if outcome.adapter and self.spec.log_adapter:
            kept.add_dir(str(outcome.adapter), name=outcome.adapter.name)
        self.run.log_artifact(kept)


def opened(spec: WandbTracker, run: Run) -> _WandbSession:
    """A run with a handle of its own beside any other of this process. An offline run that goes on is a second file of the same id."""
    place = Path(spec.folder).expanduser().absolute()
    place.mkdir(parents=True, exist_ok=True)
    kept = {f"WANDB_{name}_DIR": str(place / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    for key, value in {"WANDB_ERROR_REPORTING": "false", **kept}.items():
        os.environ.setdefault(key, value)
    import wandb

    made = wandb.init(
        project=spec.project,
        entity=spec.entity,
        name=run.name,
        group=run.group,
        notes=" ".join(run.differs),
        id=run.id or uuid.uuid4().hex[:12],
        resume="allow" if spec.mode == "online" else None,
        config=run.config,
        dir=str(place),
        mode=spec.mode,
        reinit="create_new",
        settings=_build_settings(wandb),
    )
    made.define_metric(STEP_METRIC)
    made.define_metric("*", step_metric=STEP_METRIC, step_sync=True)
    return _WandbSession(made, spec)


def _build_settings(wandb: Any) -> Any:
    """Nothing of this machine and of what it prints is told."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        init_timeout=60,
    )
