"""How long peftrun's light commands take, against `import hydra` (the floor) and `import torch, peft` (what they avoid).

Each command is a process of its own in an empty folder, timed from its start to its exit. All commands run once a
round, one after another, so that a machine that slows down slows all alike; a ratio is taken within its round. Before
the first round each command runs once with `python -X importtime`: that tells which modules it loads, and warms the
disk cache and the compiled modules.

    python benchmarks/startup.py [--repeats N] [--output benchmarks/results/startup.md]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report


@dataclass(frozen=True)
class Command:
    """Arguments of the interpreter, what to add to the environment, and the exit code that is right."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    code: int = 0


LINE = "peftrun lora="  # what Hydra's bash completion passes on while the user types
COMPLETION = {"COMP_LINE": LINE, "COMP_POINT": str(len(LINE))}
HYDRA = Command("import hydra", ("-c", "import hydra"))
HEAVY = Command("import torch, peft", ("-c", "import torch, peft"))
OURS = (
    Command("peftrun --version", ("-m", "peftrun", "--version")),
    Command("peftrun --help", ("-m", "peftrun", "--help")),
    Command("peftrun --cfg job", ("-m", "peftrun", "--cfg", "job")),
    Command("completion of `lora=`", ("-m", "peftrun", "-sc", "query=bash"), COMPLETION),
    Command("rejected: lora.r=0", ("-m", "peftrun", "lora.r=0"), code=1),
)
COMMANDS = (HYDRA, *OURS, HEAVY)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=report.RESULTS / "startup.md")
    options = parser.parse_args()
    where = report.machine()
    with tempfile.TemporaryDirectory() as folder:
        modules = {command.name: loaded(command, folder) for command in COMMANDS}
        seconds: dict[str, list[float]] = {command.name: [] for command in COMMANDS}
        for _ in range(options.repeats):
            for command in COMMANDS:
                seconds[command.name].append(timed(command, folder))
    write(options.output, seconds, modules, where)


def timed(command: Command, folder: str) -> float:
    """Seconds from the start of the process to its exit."""
    started = time.perf_counter()
    execute(command, folder)
    return time.perf_counter() - started


def loaded(command: Command, folder: str) -> set[str]:
    """Names of the modules that the command imports, as the interpreter reports them."""
    lines = execute(command, folder, "-X", "importtime").splitlines()
    names = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    return names - {"imported package"}  # the heading


def execute(command: Command, folder: str, *flags: str) -> str:
    """Runs the command; returns what it says on standard error. An unexpected exit code ends the benchmark."""
    done = subprocess.run(
        [sys.executable, *flags, *command.arguments],
        cwd=folder,
        env=os.environ | command.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != command.code:
        sys.exit(f"{command.name}: exit code {done.returncode}, expected {command.code}\n{done.stderr}")
    return done.stderr


def write(output: Path, seconds: dict[str, list[float]], modules: dict[str, set[str]], where: dict[str, Any]) -> None:
    """The table, ratios first."""
    figures = {
        command.name: {
            "times_import_hydra": report.ratios(seconds[command.name], seconds[HYDRA.name]),
            "share_of_import_torch_peft": report.ratios(seconds[command.name], seconds[HEAVY.name]),
            "seconds": report.spread(seconds[command.name]),
            "loads_torch": "torch" in modules[command.name],
            "modules": len(modules[command.name]),
            "each_second": [round(value, 4) for value in seconds[command.name]],
        }
        for command in COMMANDS
    }
    rounds = len(seconds[HYDRA.name])
    header = ["process", "÷ import hydra", "÷ import torch, peft", "seconds", "loads torch", "modules"]
    intro = (
        f"Whole-process wall time, median (min–max) of {rounds} interleaved rounds; "
        "a ratio is taken within its round. Exit codes are checked."
    )
    parts = [intro, report.table(header, [row(name, found) for name, found in figures.items()])]
    report.write(output, "Start-up of the light commands", parts, {"rounds": rounds, "processes": figures}, where)


def row(name: str, found: dict[str, Any]) -> list[Any]:
    """One line of the table."""
    return [
        name,
        report.cells(found["times_import_hydra"]),
        report.cells(found["share_of_import_torch_peft"], 3),
        report.cells(found["seconds"], 3),
        "yes" if found["loads_torch"] else "no",
        found["modules"],
    ]


if __name__ == "__main__":
    main()
