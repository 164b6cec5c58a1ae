"""One of several processes of a run: `python -m peftrun.runs.torchrun_worker RUN_FOLDER`, started by `launch`."""

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
from peftrun.runs import execute, torchrun


def main(out_dir: Path) -> int:
    """Exit code; the outcome or the fault lies in the run folder then."""
    rank = int(os.environ["RANK"])
    _redirect_to_log(out_dir / f"worker-{rank}.log")
    try:
        spec = usage.track_reads(build_spec_from_values(config.read_values(out_dir / CONFIG)))
        with memory_fit.suggest_on_shortage(usage.strip_tracking(spec)):
            result = execute.import_action("train").run(spec, out_dir)
    except PeftrunError as fault:
        torchrun.write_error(out_dir, type(fault).__name__, fault.lines)
        return 1
    finally:
        trackers.pause_tracking(out_dir)
    if rank == 0:
        result.facts |= execute.collect_numerics()
        torchrun.write_result(out_dir, result, usage.list_read_keys(spec))
    return 0


def _redirect_to_log(log: Path) -> None:
    """Everything that this process prints, in Python or below it, goes into its log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
