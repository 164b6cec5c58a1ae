"""One group of a sweep in a process with a device of its own: `python -m peftrun.sweep.device_worker LOGS`, started by `local_workers`. Light.

Standard input is a pipe: one line of JSON with the cells' folders and limits, then nothing until the launcher closes it or dies.
"""

import json
import sys
from pathlib import Path

from peftrun.planning.joint_memory import Limits
from peftrun.sweep import cluster, run_cells
from peftrun.system import parent_process

INTERRUPTED = 130  # exit code: 128 + SIGINT


def main() -> int:
    """Exit code; the results are in the records of the cells."""
    pipe = parent_process.open_pipe()
    job = json.loads(pipe.readline())
    parent_process.end_with_parent(pipe, cluster.STOPPING)  # nothing trains on without its command
    try:
        run_cells.run([Path(folder) for folder in job["folders"]], Limits(**job["limits"]))
    except KeyboardInterrupt:  # also SIGTERM
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
