"""MLflow: a SQLite file on this disk, or a tracking server. Light until a tracker begins."""

import logging
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from peftrun.config.schema.trackers import MlflowTracker
from peftrun.errors import ConfigError
from peftrun.trackers.base import Outcome, Run, explain_error, format_value, summarize_record

FILE, ARTIFACTS = "mlflow.db", "artifacts"
ENV_DEFAULTS = {  # no request but to the store; a store that is gone is found so soon
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
MAX_BATCH_PARAMS = 100  # most parameters, or tags, in a request
RUN_STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class _MlflowSession:
    """`known`: figure → the last step of it that an earlier attempt has told; empty of a new run."""

    def __init__(self, client: Any, run_id: str, spec: MlflowTracker, continued: bool) -> None:
        self.client, self.id, self.spec, self.continued = client, run_id, spec, continued
        self.known: dict[str, int] = {}

    def log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        new = {name: value for name, value in values.items() if step > self._told(name)}
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in new.items()])

    def _told(self, name: str) -> int:
        if self.continued and name not in self.known:
            history = self.client.get_metric_history(self.id, name)
            self.known[name] = max((one.step for one in history), default=-1)
        return self.known.get(name, -1)

    def pause(self) -> None:
        """Everything is written when it is told."""

    def end(self, outcome: Outcome) -> None:
        for first in (True, False):
            self.log(outcome.at(first), 0 if first else outcome.last_step)
        for name, value in (
            {"peftrun.status": outcome.status}
            | {f"peftrun.{k}": v for k, v in summarize_record(outcome.record).items()}
        ).items():
            self.client.set_tag(self.id, name, str(value)[:5000])
        for file in outcome.files:
            self.client.log_artifact(self.id, str(file))
        if outcome.adapter and self.spec.log_adapter:
            self.client.log_artifacts(self.id, str(outcome.adapter), outcome.adapter.name)
        self.client.set_terminated(self.id, RUN_STATUS.get(outcome.status, "FAILED"))


def opened(spec: MlflowTracker, run: Run) -> _MlflowSession:
    """A run of the experiment, by a client of its own. Raises: ConfigError: the store cannot be reached."""
    for key, value in ENV_DEFAULTS.items():
        os.environ.setdefault(key, value)
    try:
        client, experiment = _open_store(spec.uri, str(Path(spec.folder).expanduser().absolute()), spec.project)
    except Exception as error:
        where = f"tracker.uri={spec.uri}" if spec.uri else f"tracker.folder={spec.folder}"
        instead = "type tracker.uri=null, or tracker=none" if spec.uri else "type tracker=none"
        raise ConfigError(f"{where}: cannot be reached ({explain_error(error)}); mend that, or {instead}") from error
    if run.id is not None:
        client.update_run(run.id, status="RUNNING")
        return _MlflowSession(client, run.id, spec, continued=True)
    made = client.create_run(experiment, run_name=run.name, tags=_build_tags(run))
    _log_config(client, made.info.run_id, run.config)
    return _MlflowSession(client, made.info.run_id, spec, continued=False)


@cache
def _open_store(uri: str | None, folder: str, project: str) -> tuple[Any, str]:
    """A client, and the id of the experiment, made if it is not there; one process at a time makes the file of a local store."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    if uri is not None:
        client = MlflowClient(tracking_uri=uri)
        return client, _get_or_create_experiment(client, project, None)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(folder) / f".{FILE}.lock"):
        client = MlflowClient(tracking_uri=f"sqlite:///{folder}/{FILE}")
        return client, _get_or_create_experiment(client, project, f"{folder}/{ARTIFACTS}")


def _get_or_create_experiment(client: Any, project: str, kept: str | None) -> str:
    found = client.get_experiment_by_name(project)
    return str(found.experiment_id if found else client.create_experiment(project, artifact_location=kept))


def _build_tags(run: Run) -> dict[str, str]:
    own = {"peftrun.folder": str(run.folder), "peftrun.differs": " ".join(run.differs)[:5000]}
    return own | ({"peftrun.sweep": run.group} if run.group else {})


def _log_config(client: Any, run_id: str, config: dict[str, Any]) -> None:
    from mlflow.entities import Param
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    told = [Param(key, format_value(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in config.items()]
    for first in range(0, len(told), MAX_BATCH_PARAMS):
        client.log_batch(run_id, params=told[first : first + MAX_BATCH_PARAMS])
