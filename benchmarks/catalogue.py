"""How long `peftrun action=list` takes on a thousand runs: with no index yet, with one, and against reading every file each time.

One real training of a tiny model leaves a record; a thousand copies of it, each with another rank and metric, are what is listed. Every
contestant is a process of its own, timed from its start to its exit, by the clock and by the processor time that it took (which other
programs on the machine do not stretch); all run once a round, one after another. What a contestant takes beyond start-up is its processor
time less that of `peftrun action=list` on an empty folder in the same round.

    python benchmarks/catalogue.py [--runs N] [--repeats N] [--output benchmarks/results/catalogue.md]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
Taken = tuple[float, float]  # seconds by the clock, and of the processor
LIST = ("-m", "peftrun", "action=list")
WHERE = ("where=lora.r>=8 and exact_match>0.5", "sort=-exact_match")
# What a script would do without an index: the C parts of both libraries, and the same question.
READ = """
import glob, json, yaml
found = []
for record in glob.glob('outputs/train/*/record.json'):
    facts = json.load(open(record))
    config = yaml.load(open(record.replace('record.json', 'config.yaml')), Loader=yaml.CSafeLoader)
    score = facts['metrics']['after']['exact_match']
    if config['lora']['r'] >= 8 and score > 0.5:
        found.append((score, record))
print(*sorted(found, reverse=True), sep='\\n')
"""
EMPTY, COLD, WARM, ASKED, FILES = "an empty folder: start-up", "no index yet", "with the index", "with the index, where and sort", "json and yaml of every run"  # fmt: skip


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=report.RESULTS / "catalogue.md")
    options = parser.parse_args()
    where = report.machine()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made(place, options.runs)
        contestants: dict[str, Callable[[], Taken]] = {
            EMPTY: lambda: timed(place / "empty", place, *LIST),
            COLD: lambda: cold(place),
            WARM: lambda: timed(place / "full", place, *LIST, lines=options.runs + 1),
            ASKED: lambda: timed(place / "full", place, *LIST, *WHERE),
            FILES: lambda: timed(place / "full", place, "-c", READ),
        }
        for contestant in contestants.values():  # the disk cache and the compiled modules are warm then
            contestant()
        seconds: dict[str, list[Taken]] = {name: [] for name in contestants}
        for _ in range(options.repeats):
            for name, contestant in contestants.items():
                seconds[name].append(contestant())
        size = (place / "cache/catalogue.sqlite").stat().st_size
    write(options, seconds, size, where)


def made(place: Path, count: int) -> None:
    """An empty folder, and one with so many runs."""
    from catalogue_runs import copies
    from conftest import TINY_STEPS, build_llama, cli_here, jsonl

    pairs = jsonl(
        place / "pairs.jsonl", [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes"} for n in range(40)]
    )
    for name in ("empty", "full", "real"):
        (place / name).mkdir()
    tiny = [f"model.name_or_path={build_llama(place / 'tiny')}", f"task.data.path={pairs}", "task.data.num_test_rows=8"]
    done = cli_here(place / "real", "model=pretrained", "task=instruction", "device=cpu", *tiny, *TINY_STEPS)
    assert done.run_dir is not None, done.err

    def change(number: int, record: dict[str, Any]) -> dict[str, str]:
        record["metrics"]["after"]["exact_match"] = number * 37 % 101 / 100
        return {"  r: 8\n": f"  r: {2 ** (number % 6)}\n"}

    copies(done.run_dir, place / "full" / "outputs", count, change)


def cold(place: Path) -> Taken:
    """The same with the index taken away before."""
    (place / "cache/catalogue.sqlite").unlink(missing_ok=True)
    return timed(place / "full", place, *LIST)


def timed(folder: Path, place: Path, *arguments: str, lines: int | None = None) -> Taken:
    """Seconds from the start of the process to its exit, and of the processor. `lines`: how many it has to print."""
    before, started = processor(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PEFTRUN_CACHE": str(place / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    taken = time.perf_counter() - started, processor() - before
    if lines is not None and done.stdout.count("\n") != lines:
        sys.exit(f"{arguments}: printed {done.stdout.count(chr(10))} lines, expected {lines}")
    return taken


def processor() -> float:
    """Seconds of the processor that ended child processes have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write(options: argparse.Namespace, taken: dict[str, list[Taken]], size: int, where: dict[str, Any]) -> None:
    """The table, ratios first."""
    clock, seconds = ({name: [one[part] for one in own] for name, own in taken.items()} for part in (0, 1))
    beyond = {
        name: [max(0.0, one - start) for one, start in zip(own, seconds[EMPTY], strict=True)]
        for name, own in seconds.items()
    }
    figures = {
        name: {
            "share_of_reading_every_file": report.ratios(beyond[name], seconds[FILES]),
            "processor_seconds": report.spread(own),
            "processor_seconds_beyond_start_up": report.spread(beyond[name]),
            "seconds": report.spread(clock[name]),
            "each_processor_second": [round(value, 4) for value in own],
            "each_second": [round(value, 4) for value in clock[name]],
        }
        for name, own in seconds.items()
    }
    header = [
        "peftrun action=list",
        "÷ json and yaml of every run",
        "processor seconds beyond start-up",
        "processor seconds",
        "seconds by the clock",
    ]
    rows = [
        [name, *(["–", "–"] if name in (EMPTY, FILES) else [report.cells(found["share_of_reading_every_file"]), report.cells(found["processor_seconds_beyond_start_up"], 3)]),
         report.cells(found["processor_seconds"], 3), report.cells(found["seconds"], 2)]
        for name, found in figures.items()
    ]  # fmt: skip
    intro = (
        f"{options.runs} runs. Whole processes, median (min–max) of {options.repeats} interleaved rounds; what is beyond start-up, and its "
        f"ratio to the last line, are processor seconds taken within their round. The index takes {size / 1e6:.1f} MB."
    )
    facts = {"runs": options.runs, "rounds": options.repeats, "index_bytes": size, "processes": figures}
    report.write(options.output, "Listing runs", [intro, report.table(header, rows)], facts, where)


if __name__ == "__main__":
    main()
