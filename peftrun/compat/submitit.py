"""submitit 1.5: how long it waits for a result that never comes. Light."""

from typing import Any


def expect_results_at_once(job: Any) -> None:
    """Has submitit wait 1 s, not 15, for the result of a job that ended without one: on one machine no slow file system holds it back."""
    job._results_timeout_s = 1
