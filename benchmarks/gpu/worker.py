"""A process that imports everything once, then does one case after another as its standard input says."""

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from typing import Any

from benchmarks.gpu.context import WORK, Missing

ANSWERS = "PEFTRUN_GPU_ANSWERS"  # the variable with the number of the pipe that takes the figures


def work() -> None:
    """Reads `PHASE/CASE` lines, answers each with a line of JSON, ends with its standard input or its parent."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.chdir(WORK)
    begin = time.time()
    with os.fdopen(int(os.environ[ANSWERS]), "w", buffering=1) as answers:
        try:
            import_libraries()
        except BaseException:  # each case then says by itself what is wrong
            traceback.print_exc()
        print(f"[imported in {time.time() - begin:.1f} s]", flush=True)
        for line in sys.stdin:
            phase, _, case = line.strip().partition("/")
            print(f"\n######## {phase}/{case}", flush=True)
            figures = run_case(phase, case)
            sys.stdout.flush()
            sys.stderr.flush()
            answers.write(json.dumps(figures, default=str) + "\n")
            free_memory()


def import_libraries() -> None:
    """What nearly every case needs, so that the time of imports is not a case's."""
    import peft  # noqa: F401
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    import peftrun  # noqa: F401
    from peftrun.runs import execute

    execute.import_quietly("peftrun.actions.train")


def run_case(phase: str, case: str) -> dict[str, Any]:
    """Its figures; `missing`: what the machine lacks; `error` and `trace`: why it failed; `over`: this process can do no more."""
    try:
        return import_module(f"benchmarks.gpu.phases.{phase}").run_case(case)
    except Missing as missing:
        return {"missing": str(missing)}
    except BaseException as error:
        traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        lines = [line for line in traceback.format_exc().strip().splitlines()[:-1] if line.strip(" ^~")]
        figures: dict[str, Any] = {"error": f"{type(error).__name__}: {text}"[:600], "trace": lines[-16:]}
        if "CUDA error" in text or "device-side assert" in text or isinstance(error, KeyboardInterrupt):
            figures["over"] = True
        return figures


def free_memory() -> None:
    """Garbage collected, the GPU's cache returned, its peaks reset."""
    gc.collect()
    with contextlib.suppress(Exception):
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
