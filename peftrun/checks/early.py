"""Checks of base model and rows before torch is imported. Light."""

from peftrun.artifacts import base_location
from peftrun.checks import tasks as task_checks
from peftrun.config.schema.run import RunSpec

BASELESS = (*task_checks.MODELLESS, "plan")


def check_base_and_rows(spec: RunSpec) -> None:
    """Raises: ModelError: the base model is neither here nor reachable. DataError: the rows lack a column of the task."""
    if spec.action.name not in BASELESS:
        base_location.check_hub_reachable(spec.model)
    if task_checks.reads_rows(spec.task, spec.action):
        from peftrun.data import columns  # imports pyarrow

        if columns.is_cheap_to_scan(spec.task.data):
            columns.check_columns(spec.task)
