"""Checks and measures peftrun on a machine with one GPU, and writes CARD_DATE.json and CARD_DATE.md.

    make gpu                                                  everything, as far as --budget reaches
    make gpu ARGS="--phases env,train1b --budget 390"         some phases
    make gpu ARGS="--tiny"                                    on a CPU, with models of two small layers

Every case runs in a process apart from this one, with a limit of its own: one that fails, hangs or takes the GPU down leaves
the others alone and becomes a line FAILED. What the machine lacks is named. benchmarks/gpu/README.md says what each phase does.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT, VARIABLE, machine

DEFAULT = (
    "env", "correct", "profile", "train1b", "train8b", "lengths", "qlora", "sweep", "merge", "swap", "serve", "tests",
)  # fmt: skip
PHASES = (*DEFAULT, "methods")
NO_GPU = "no GPU here that torch can compute on; on a CPU type: make gpu ARGS=--tiny"


def main() -> None:
    """As a worker, does cases; otherwise runs the phases and writes."""
    if sys.argv[1:] == ["worker"]:
        from benchmarks.gpu import worker

        return worker.work()
    options = parse_options()
    card = None if options.tiny else machine.find_card()
    if card is None and not options.tiny:
        sys.exit(NO_GPU)
    output = choose_output(options, card)
    work = Path(options.work or tempfile.mkdtemp(prefix="peftrun-gpu-")).resolve()
    try:
        run(options, card, output, work)
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    return None


def parse_options() -> Any:
    """What was typed; a wrong phase ends the program with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--phases", default=DEFAULT, type=lambda text: text.split(","), help=f"of {', '.join(PHASES)}")
    add("--only", default="", help="a regular expression: run the cases whose PHASE/CASE it matches")
    add("--rounds", type=int, help="times that each contestant has its turn; default: 3, with --tiny 1")
    add("--budget", type=float, default=5400, help="seconds of everything")
    add("--limits", default={}, type=parse_limits, help="seconds of some phases: train8b=180,sweep=120")
    add("--out", type=Path, help="folder of the figures; default: benchmarks/results/gpu, with --tiny outputs/gpu")
    add("--name", help="file name of the figures without its ending; default: CARD_DATE")
    add("--work", type=Path, help="where base models and runs go; default: a temporary folder, removed at the end")
    add("--batch8", type=int, default=0, help="rows of a step on the large base; default: 2, below 100 GiB 1")
    add("--tiny", action="store_true", help="tiny models on a CPU")
    add("--verbose", action="store_true", help="print each case as it begins")
    options = parser.parse_args()
    unknown = [name for name in (*options.phases, *options.limits) if name not in PHASES]
    if unknown:
        parser.exit(1, f"--phases {','.join(unknown)}: no such phase; choose of {', '.join(PHASES)}\n")
    options.rounds = options.rounds or (1 if options.tiny else 3)
    return options


def parse_limits(text: str) -> dict[str, float]:
    """`train8b=180,sweep=120` → phase → seconds."""
    return {name: float(seconds) for name, _, seconds in (part.partition("=") for part in text.split(","))}


def choose_output(options: Any, card: dict[str, Any] | None) -> Path:
    """The JSON file; a number is added to its name if there is one already, but for a name that was typed."""
    results = ROOT / ("outputs/gpu" if options.tiny else "benchmarks/results/gpu")
    folder = (options.out or results).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.name:
        return folder / f"{options.name}.json"
    stem = f"{machine.slugify_card(card)}_{date.today():%Y-%m-%d}"
    names = (stem, *(f"{stem}_{number}" for number in range(2, 1000)))
    return next(file for name in names if not (file := folder / f"{name}.json").exists())


def run(options: Any, card: dict[str, Any] | None, output: Path, work: Path) -> None:
    """Tells the workers where and how, runs the phases, writes."""
    logs = (options.out or ROOT / "outputs" / "gpu").resolve() / f"{output.stem}_logs"
    for folder in (logs, work):
        folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "tiny": options.tiny,
        "rounds": options.rounds,
        "batch8": options.batch8,
        "work": str(work),
        "logs": str(logs),
        "card": card,
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    os.environ |= {
        VARIABLE: json.dumps(facts), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_HOME": str(work / "hf"), "PEFTRUN_CACHE": str(work / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
    }  # fmt: skip
    # One GPU, whatever others there are: transformers' Trainer would use all that it sees, and TRL refuses to.
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if options.tiny else machine.get_visible_card()
    from benchmarks.gpu.runner import Runner  # now that its modules can read the facts above

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    runner = Runner(options, output, machine.describe_machine(card))
    try:
        runner.run_phases()
    except KeyboardInterrupt:
        runner.report("interrupted")
    finally:
        runner.close()


if __name__ == "__main__":
    main()
