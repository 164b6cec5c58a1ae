"""MLflow: a local SQLite file, or a tracking server. Light until a tracker starts."""

import logging
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from peftrun.config.schema.trackers import MlflowTracker
from peftrun.errors import ConfigError
from peftrun.formatting import format_value
from peftrun.trackers.base import Outcome, Run, explain_error, summarize_record

FILE, ARTIFACTS = "mlflow.db", "artifacts"
ENV_DEFAULTS = {  # no telemetry, and an unreachable server fails in seconds, not minutes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
MAX_BATCH_PARAMS = 100  # MLflow's limit of parameters in one request
RUN_STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class _MlflowSession:
    """`last_steps`: metric → last step that an earlier attempt has logged; empty for a new run."""

    def __init__(self, client: Any, run_id: str, spec: MlflowTracker, continued: bool) -> None:
        self.client, self.id, self.spec, self.continued = client, run_id, spec, continued
        self.last_steps: dict[str, int] = {}

    def log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now, metrics = int(time.time() * 1000), []  # milliseconds
        for name, value in values.items():
            if self.continued and name not in self.last_steps:
                history = self.client.get_metric_history(self.id, name)
                self.last_steps[name] = max((metric.step for metric in history), default=-1)
            if step > self.last_steps.get(name, -1):  # MLflow would add a second point for a step that is logged again
                metrics.append(Metric(name, value, now, step))
        self.client.log_batch(self.id, metrics=metrics)

    def pause(self) -> None:
        """Nothing to do: every request is written at once."""

    def end(self, outcome: Outcome) -> None:
        self.log(outcome.at(first=True), 0)
        self.log(outcome.at(first=False), outcome.last_step)
        for name, value in ({"status": outcome.status} | summarize_record(outcome.record)).items():
            self.client.set_tag(self.id, f"peftrun.{name}", str(value)[:5000])  # MLflow's limit of a tag
        for file in outcome.files:
            self.client.log_artifact(self.id, str(file))
        if outcome.adapter and self.spec.log_adapter:
            self.client.log_artifacts(self.id, str(outcome.adapter), outcome.adapter.name)
        self.client.set_terminated(self.id, RUN_STATUS.get(outcome.status, "FAILED"))


def opened(spec: MlflowTracker, run: Run) -> _MlflowSession:
    """A session with its own client. Raises: ConfigError: the store cannot be reached."""
    for key, value in ENV_DEFAULTS.items():
        os.environ.setdefault(key, value)
    try:
        client, experiment = _open_store(spec.uri, str(Path(spec.folder).expanduser().absolute()), spec.project)
    except Exception as error:
        where = f"tracker.uri={spec.uri}" if spec.uri else f"tracker.folder={spec.folder}"
        instead = "type tracker.uri=null, or tracker=none" if spec.uri else "type tracker=none"
        raise ConfigError(f"{where}: cannot be reached ({explain_error(error)}); fix that, or {instead}") from error
    if run.id is not None:
        client.update_run(run.id, status="RUNNING")
        return _MlflowSession(client, run.id, spec, continued=True)
    tags = {"peftrun.folder": str(run.folder), "peftrun.differs": " ".join(run.differs)[:5000]}
    if run.group:
        tags["peftrun.sweep"] = run.group
    run_id = client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
    from mlflow.entities import Param
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    params = [Param(key, format_value(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in run.config.items()]
    for start in range(0, len(params), MAX_BATCH_PARAMS):
        client.log_batch(run_id, params=params[start : start + MAX_BATCH_PARAMS])
    return _MlflowSession(client, run_id, spec, continued=False)


@cache
def _open_store(uri: str | None, folder: str, project: str) -> tuple[Any, str]:
    """A client, and the id of the experiment, which is created if it is missing."""
    for name in ("mlflow", "alembic"):  # they log each migration of a new database
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    if uri is not None:
        client = MlflowClient(tracking_uri=uri)
        return client, _get_or_create_experiment(client, project, None)
    Path(folder).mkdir(parents=True, exist_ok=True)
    # Locked, since two processes that create the database at the same time fail.
    with FileLock(Path(folder) / f".{FILE}.lock"):
        client = MlflowClient(tracking_uri=f"sqlite:///{folder}/{FILE}")
        return client, _get_or_create_experiment(client, project, f"{folder}/{ARTIFACTS}")


def _get_or_create_experiment(client: Any, project: str, artifacts: str | None) -> str:
    experiment = client.get_experiment_by_name(project)
    return str(experiment.experiment_id if experiment else client.create_experiment(project, artifacts))
