"""A worker process of a run: `python -m peftrun.runs.torchrun_worker RUN_FOLDER`, started by `torchrun`."""

import os
import sys
from pathlib import Path

from peftrun import trackers
from peftrun.artifacts.run_layout import CONFIG
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import usage
from peftrun.config import values as config
from peftrun.errors import PeftrunError
from peftrun.planning import memory_fit
from peftrun.runs import execute, result_upload, torchrun
from peftrun.system import parent_process


def main(out_dir: Path) -> int:
    """Exit code; the outcome or the error is then in the run folder."""
    parent_process.end_with_parent(parent_process.open_pipe())  # nothing trains on, and writes, without its command
    rank = int(os.environ["RANK"])
    log = os.open(out_dir / f"worker-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    # At the level of file descriptors: C++ libraries such as NCCL do not write through sys.stderr.
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        spec = usage.track_reads(build_spec_from_values(config.read_values(out_dir / CONFIG)))
        with memory_fit.suggest_on_shortage(usage.strip_tracking(spec)):
            result = execute.import_action("train").run(spec, out_dir)
    except PeftrunError as fault:
        torchrun.write_error(out_dir, type(fault).__name__, fault.lines)
        return 1
    finally:
        trackers.pause_tracking(out_dir)
        result_upload.finish_uploads(out_dir)
    if rank == 0:  # all ranks have the same result
        result.facts |= execute.collect_numerics()
        torchrun.write_result(out_dir, result, usage.list_read_keys(spec))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
