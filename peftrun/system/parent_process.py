"""Worker processes that end with the command that started them, however it ends: their standard input is a pipe of its."""

import os
import signal
import threading
import time
from typing import BinaryIO


def open_pipe() -> BinaryIO:
    """Standard input, unbuffered: a lock on a buffer that a thread waits for would be in the way at the end of the process."""
    return open(0, "rb", buffering=0, closefd=False)


def end_with_parent(pipe: BinaryIO, grace: float = 0.0) -> None:
    """From now on this process is killed once `pipe` is closed. `grace`: seconds in which it may end as by Ctrl-C before."""
    threading.Thread(target=_wait_and_end, args=(pipe, grace), daemon=True).start()


def _wait_and_end(pipe: BinaryIO, grace: float) -> None:
    pipe.read(1)
    if grace:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
    os.kill(os.getpid(), signal.SIGKILL)
