"""How fast a sweep on one shared base is, against what there is otherwise.

    makespan   eight cells (two ranks, four learning rates) of the default task, from the shell's prompt and back:
               shared_base   `peftrun -m … hydra/launcher=shared_base`
               basic         the same command without a launcher: one process, one cell after another
               scripts       eight processes, one after another, of a script written by hand (sweep_script.py)
    steps      warm steps in one process: eight cells in one joint step against eight lone steps one after another, same
               dtype, rows of exactly so many tokens, one a cell, a quarter of them labels; both compute logits only there.
               bfloat16 is left out on a processor that emulates it

All cells have one seed and so the same rows in the same order. Contestants run one after another in each round, and a ratio is
taken within its round. Peak memory: the largest resident set of the processes that a contestant starts.

    python benchmarks/sweep.py [--only makespan steps] [--rounds N] [--max-steps N]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report

from peftrun.composition.spec import build_spec
from peftrun.system.environment import find_native_bf16

RANKS, RATES = (8, 16), ("1e-4", "3e-4", "1e-3", "3e-3")
SCRIPT = Path(__file__).with_name("sweep_script.py")
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
STEP_CASES = [("bfloat16", 32), ("bfloat16", 128), ("float32", 32), ("float32", 128)]
CELLS, WARM_UP, MEASURED = 8, 3, 8


def main() -> None:
    """Runs what is asked for and writes results/sweep_makespan.md, results/sweep_steps.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("makespan", "steps"), default=("makespan", "steps"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument(
        "--scripts", type=int, default=8, help="processes of the script that are run; their time is scaled to eight"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # what this script starts itself with
    options = parser.parse_args()
    if options.child:
        return CHILDREN[options.child[0]](json.loads(options.child[1]))
    if "steps" in options.only:
        steps(options.rounds)
    if "makespan" in options.only:
        makespan(options.rounds, options.max_steps, options.scripts)
    return None


def makespan(rounds: int, max_steps: int, processes: int) -> None:
    """Every contestant in every round."""
    where = report.machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        base = child("rows", {"file": str(rows), "max_steps": max_steps}, folder)["base"]
        runs = [
            {
                "shared_base": sweep(Path(folder) / f"shared_base{number}", max_steps, "hydra/launcher=shared_base"),
                "basic": sweep(Path(folder) / f"basic{number}", max_steps, "hydra.sweep.subdir=${hydra.job.num}"),
                "scripts": scripts(Path(folder) / f"scripts{number}", base, rows, processes),
            }
            for number in range(rounds)
        ]
    tell(runs, max_steps, processes, where)


def tell(runs: list[dict[str, Any]], max_steps: int, processes: int, where: dict[str, Any]) -> None:
    """Writes the tables."""
    each = {name: [one[name] for one in runs] for name in runs[0]}
    keys = ("seconds", "peak_mib")
    ratios = {
        name: {
            key: report.ratios([one[key] for one in found], [one[key] for one in each["shared_base"]]) for key in keys
        }
        for name, found in each.items()
        if name != "shared_base"
    }
    spreads = {name: {key: report.spread(one[key] for one in found) for key in keys} for name, found in each.items()}
    parts = [
        f"Eight cells (ranks {RANKS}, learning rates {', '.join(RATES)}) of the default task, {max_steps} steps each; "
        f"median (min–max) of {len(runs)} interleaved rounds. Above 1 is in favour of shared_base. "
        f"Of the eight processes of the script {processes} were run, and their time scaled to eight.",
        report.table(
            ["÷ shared_base", "makespan", "peak memory"],
            [[name, *(report.cells(found[key]) for key in keys)] for name, found in ratios.items()],
        ),
        report.table(
            ["contestant", "makespan, s", "peak memory, MiB", "choice accuracy of the eight"],
            [
                [
                    name,
                    report.cells(spreads[name]["seconds"], 0),
                    report.cells(spreads[name]["peak_mib"], 0),
                    accuracies(each[name][0]),
                ]
                for name in each
            ],
        ),
    ]
    figures = {"max_steps": max_steps, "ratios_to_shared_base": ratios, "spreads": spreads, "runs": each}
    report.write(report.RESULTS / "sweep_makespan.md", "A sweep of eight cells", parts, figures, where)


def accuracies(run: dict[str, Any]) -> str:
    """Of the eight cells, in the grid's order."""
    return " ".join(f"{one:.2f}" for one in run["choice_accuracy"])


def launched(command: list[str], folder: Path) -> dict[str, Any]:
    """Wall time of one process, and what it printed."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | QUIET,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{command}: exit code {process.returncode}\n{out}\n{err}")
    print(f"{Path(command[0]).name} {folder.name}: {seconds:.0f} s", file=sys.stderr)
    return {"seconds": seconds, "out": out}


def sweep(folder: Path, max_steps: int, *more: str) -> dict[str, Any]:
    """The command line, in a process that measures its own peak."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--child",
        "sweep",
        json.dumps({"max_steps": max_steps, "more": more}),
    ]
    found = launched(command, folder)
    told = json.loads(found["out"].splitlines()[-1])
    return {"seconds": found["seconds"], **told}


def _sweep_child(given: dict[str, Any]) -> None:
    from peftrun.cli.main import main as cli

    ranks, rates = ",".join(map(str, RANKS)), ",".join(RATES)
    sys.argv = [
        "peftrun", "-m", f"lora.r={ranks}", f"trainer.learning_rate={rates}", f"trainer.max_steps={given['max_steps']}",
        "hydra.sweep.dir=sweep", *given["more"],
    ]  # fmt: skip
    code = cli()
    if code:
        sys.exit(code)
    cells = sorted(Path("sweep").glob("*/record.json"), key=lambda path: order(json.loads(path.read_text()), path))
    found = [json.loads(path.read_text())["metrics"]["after"]["choice_accuracy"] for path in cells]
    print(f"\n{json.dumps({'peak_mib': own_peak(), 'choice_accuracy': found})}")


def order(record: dict[str, Any], path: Path) -> tuple[int, float]:
    """A cell's place in the grid."""
    from peftrun.config import values as config

    values = config.read_values(path.with_name("config.yaml"))
    return values["lora"]["r"], values["trainer"]["learning_rate"]


def own_peak() -> float:
    """Largest resident set of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def scripts(folder: Path, base: str, rows: Path, processes: int) -> dict[str, Any]:
    """The grid's first processes, one after another; seconds of all eight."""
    found, started = [], time.perf_counter()
    for rank, rate in [(rank, rate) for rank in RANKS for rate in RATES][:processes]:
        done = launched([sys.executable, str(SCRIPT), base, str(rows), str(rank), rate], folder)
        found.append(json.loads(done["out"].splitlines()[-1]))
    return {
        "seconds": (time.perf_counter() - started) * len(RANKS) * len(RATES) / processes,
        "peak_mib": max(one["peak_mib"] for one in found),
        "choice_accuracy": [one["choice_accuracy"] for one in found],
    }


def _rows_child(given: dict[str, Any]) -> None:
    """The default task's rows as token ids in a file, and where the base lies."""
    from peftrun.composition import compose
    from peftrun.models import base as base_models
    from peftrun.models import device
    from peftrun.tasks import causal_lm

    spec = build_spec(compose.compose_run([]).cfg)
    base = base_models.load_base(spec.model, device.resolve_device(spec.device))
    rows = causal_lm.load_rows(spec.task, base.tokenizer)
    held_out = [
        {
            "true": row.answer,
            "answers": [
                {"input_ids": row.prompt + ids, "labels": [-100] * len(row.prompt) + ids} for ids in row.candidates
            ],
        }
        for row in rows.held_out
    ]
    whole = {"train": rows.build_training_rows(), "held_out": held_out, "max_steps": given["max_steps"]}
    Path(given["file"]).write_text(json.dumps(whole))
    print(f"\n{json.dumps({'base': str(base.folder)})}")


def child(name: str, given: dict[str, Any], folder: str) -> Any:
    """What this script prints when started for one thing, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name, json.dumps(given)]
    return json.loads(launched(command, Path(folder))["out"].splitlines()[-1])


def steps(rounds: int) -> None:
    """Joint and lone steps, each case in a process of its own in every round."""
    where = report.machine()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            f"{dtype}, {tokens} tokens": [
                child("steps", {"dtype": dtype, "tokens": tokens}, f"{folder}/{dtype}{tokens}-{number}")
                for number in range(rounds)
            ]
            for dtype, tokens in STEP_CASES
            if dtype == "float32" or find_native_bf16()
        }
    ratios = {
        name: report.ratios([one["alone"] for one in found], [one["joint"] for one in found])
        for name, found in runs.items()
    }
    spreads = {
        name: {key: report.spread(one[key] for one in found) for key in ("joint", "alone")}
        for name, found in runs.items()
    }
    rows = [
        [
            name,
            report.cells(ratios[name]),
            report.cells(spreads[name]["joint"], 3),
            report.cells(spreads[name]["alone"], 3),
        ]
        for name in runs
    ]
    parts = [
        f"{CELLS} cells of one row each, LoRA r=8 on every linear layer of the embedded model; optimiser, clipping, schedule and logs "
        f"included; mean of {MEASURED} warm steps, median (min–max) of {rounds} rounds.",
        report.table(["case", "eight lone steps ÷ a joint step", "a joint step, s", "eight lone steps, s"], rows),
    ]
    report.write(
        report.RESULTS / "sweep_steps.md",
        "A joint step",
        parts,
        {"ratios": ratios, "spreads": spreads, "runs": runs},
        where,
    )


def _steps_child(given: dict[str, Any]) -> None:
    from peftrun import tasks
    from peftrun.composition import compose
    from peftrun.models import base_cache
    from peftrun.planning.joint_memory import Limits
    from peftrun.runs import execute

    tasks.load_task_rows = lambda task, base, *_: synthetic(given["tokens"], base)  # rows of exactly so many tokens
    cells = [
        build_spec(compose.compose_run([
            f"device.dtype={given['dtype']}", "trainer.per_device_train_batch_size=1", f"trainer.max_steps={WARM_UP + MEASURED}",
            "trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.save_strategy=no", "action.evaluate_before=false", f"seed={n}",
        ]).cfg)
        for n in range(CELLS)
    ]  # fmt: skip
    with base_cache.keep_base_cached():
        folders = [Path(f"joint{n}") for n in range(CELLS)]
        execute.execute_jointly(cells, folders, Limits(cells=CELLS))
        lone = [Path(f"lone{n}") for n in range(CELLS)]
        for spec, folder in zip(cells, lone, strict=True):
            execute.execute_run(spec, folder)
    print(f"\n{json.dumps({'joint': step_seconds(folders[0]), 'alone': sum(map(step_seconds, lone))})}")


def step_seconds(folder: Path) -> float:
    """Mean time from one logged step to the next, without the first ones, and without the last: some cells end before others log it."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (rows[-2]["seconds"] - rows[WARM_UP - 1]["seconds"]) / (len(rows) - 1 - WARM_UP)


def synthetic(tokens: int, base: Any) -> Any:
    """Random rows; the last quarter of each is learned."""
    import random

    from peftrun.tasks.rows import Rows
    from peftrun.tasks.rows.causal_lm import Row

    draw, learned = random.Random(0), tokens // 4
    rows = [[draw.randrange(1000, 40000) for _ in range(tokens)] for _ in range(64)]
    made = [Row(ids[:-learned], ids[-learned:], [ids[-learned:]], 0) for ids in rows]
    return Rows(made[1:], made[:1], "synthetic")


CHILDREN = {"sweep": _sweep_child, "rows": _rows_child, "steps": _steps_child}

if __name__ == "__main__":
    main()
