"""A run that ends itself with SIGKILL after so many steps: python -m benchmarks.gpu.killed_run STEPS FOLDER OVERRIDE …"""

import os
import signal
import sys
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

import peftrun


class Kill(TrainerCallback):
    """Kills this process at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As if the machine had failed."""
        if state.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    DEFAULT_CALLBACKS.append(Kill(int(sys.argv[1])))
    peftrun.run(*sys.argv[3:], out_dir=sys.argv[2])
