"""One group of a sweep in a process with a device of its own: `python -m peftrun.sweep.device_worker LOGS`, started by `local_workers`. Light.

Standard input is a pipe: one line of JSON with the cells' folders and limits, then nothing until the launcher closes it or dies.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from peftrun.planning.joint_memory import Limits
from peftrun.sweep import cluster, run_cells

INTERRUPTED = 130  # exit code: 128 + SIGINT


def main() -> int:
    """Exit code; the results are in the records of the cells."""
    # Unbuffered: a lock on a buffer that a thread waits for would be in the way at the end of the process.
    pipe = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115
    job = json.loads(pipe.readline())
    threading.Thread(target=_end_with_launcher, args=(pipe,), daemon=True).start()
    try:
        run_cells.run([Path(folder) for folder in job["folders"]], Limits(**job["limits"]))
    except KeyboardInterrupt:  # also SIGTERM
        return INTERRUPTED
    return 0


def _end_with_launcher(pipe: BinaryIO) -> None:
    """Wait for the end of the launcher, then end this process as Ctrl-C would: nothing trains on without its command."""
    pipe.read(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(cluster.STOPPING)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
