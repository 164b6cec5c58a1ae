"""One of several processes of a run: `python -m peftrun.worker RUN_FOLDER`, started by `launch`."""

import os
import sys
from pathlib import Path

from peftrun import config, dispatch, launch, trackers
from peftrun.artifacts import CONFIG
from peftrun.errors import PeftrunError
from peftrun.explain import reads
from peftrun.sweep import fitting


def main(out_dir: Path) -> int:
    """Exit code; the outcome or the fault lies in the run folder then."""
    rank = int(os.environ["RANK"])
    _into_log(out_dir / f"worker-{rank}.log")
    try:
        spec = reads.tracked(config.of_values(config.read_values(out_dir / CONFIG)))
        with fitting.advising(reads.plain(spec)):
            result = dispatch.action("train").run(spec, out_dir)
    except PeftrunError as fault:
        launch.tell_fault(out_dir, type(fault).__name__, fault.lines)
        return 1
    finally:
        trackers.pause(out_dir)
    if rank == 0:
        result.facts |= dispatch.computing()
        launch.tell(out_dir, result, reads.noted(spec))
    return 0


def _into_log(log: Path) -> None:
    """Everything that this process prints, in Python or below it, goes into its log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
