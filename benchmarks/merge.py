"""A merge from files to files, against PEFT's `merge_and_unload` + `save_pretrained` and against `cp -r` of the base.

Builds a base of 1.1 billion parameters in bfloat16 shards and one of twice its layers, with a LoRA of rank 16 on every
linear layer of each. Each contestant is a process of its own, from its start to its exit; all run once a round, one
after another, and a ratio is taken within its round. Peak memory is the largest resident set of the process, Python
and libraries included. peftrun flushes what it wrote to the disk before it ends; `cp -r` alone and PEFT do not, so
`cp -r` followed by `sync` is a row of its own. Every merged tensor is compared: ours must be the sum computed in
float32 and rounded once. Needs 20 GB of disk.

    python benchmarks/merge.py [--repeats N] [--layers N] [--output benchmarks/results/merge.md]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report

CONTESTANTS = Path(__file__).with_name("merge_contestants.py")
OURS, PROVED, PEFT, COPY, FLUSHED = (
    "peftrun", "peftrun, proved", "PEFT merge_and_unload + save_pretrained", "cp -r", "cp -r, sync"
)  # fmt: skip
MIB = 2**20


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--folder", type=Path, help="where to build and write; default: the system's temporary folder")
    parser.add_argument("--output", type=Path, default=report.RESULTS / "merge.md")
    options = parser.parse_args()
    where = report.machine()
    parts, figures = [], {}
    for layers in (options.layers, 2 * options.layers):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            execute([sys.executable, str(CONTESTANTS), "build", name, str(layers)], folder)
            found = measured(folder, options.repeats)
        figures[f"{layers} layers"] = found
        parts += [intro(found, layers), report.table(HEADER, [row(*item) for item in found["processes"].items()])]
    report.write(options.output, "A merge from files to files", parts, figures, where)


def measured(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds and peak memory of each contestant in each round; the base's size; how long its fingerprint takes."""
    base = folder / "base"
    shards = sorted(base.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in shards)
    read = seconds_of(["cat", *map(str, shards)], folder)[0]
    first, again = (seconds_of(fingerprint(base), folder)[0] for _ in range(2))
    commands = contestants(folder)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            os.sync()  # what the one before left unwritten is not this one's
            found[name].append(seconds_of(command, folder))
            exact = differing(folder) if name == OURS else None
            shutil.rmtree(folder / "out")
            if exact:
                sys.exit(f"{exact} merged tensors are not the float32 sum rounded once")
    return {
        "base_bytes": size,
        "shards": len(shards),
        "read_seconds": read,
        "fingerprint_seconds": {"first": first, "cached": again},
        "processes": {name: summed(each, found) for name, each in found.items()},
    }


def contestants(folder: Path) -> dict[str, list[str]]:
    """Command lines, each of which leaves a folder `out`."""
    base, out = str(folder / "base"), str(folder / "out")
    ours = [
        sys.executable, "-m", "peftrun", "action=merge", "model=pretrained", f"model.name_or_path={base}", "device=cpu",
        f"adapter={folder / 'adapter'}", f"action.output_dir={out}", "action.held_out_rows=0",
    ]  # fmt: skip
    return {
        COPY: ["cp", "-r", base, out],
        FLUSHED: ["sh", "-c", f"cp -r {base} {out} && sync"],
        OURS: [*ours, "action.verify=false"],
        PROVED: ours,
        PEFT: [sys.executable, str(CONTESTANTS), "merge", str(folder), out],
    }


def fingerprint(base: Path) -> list[str]:
    """A process that prints the fingerprint of a model folder, and how long that took on top of its imports."""
    code = (
        f"from peftrun import fingerprint, paths; from pathlib import Path; fingerprint.of_model(Path({str(base)!r}))"
    )
    return [sys.executable, "-c", code]


def differing(folder: Path) -> int:
    """Number of merged tensors that are not W + s·B·A, computed in float32 and rounded once."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from safetensors import safe_open\n"
        "from safetensors.torch import load_file\n"
        "folder = Path(sys.argv[1]); lora = load_file(folder / 'adapter/adapter_model.safetensors'); wrong = 0\n"
        "for file in sorted((folder / 'base').glob('*.safetensors')):\n"
        "    with safe_open(file, 'pt') as base, safe_open(folder / 'out' / file.name, 'pt') as merged:\n"
        "        for key in base.keys():\n"
        "            path = 'base_model.model.' + key.removesuffix('.weight'); value = base.get_tensor(key)\n"
        "            if path + '.lora_A.weight' in lora:\n"
        "                down, up = (lora[f'{path}.lora_{side}.weight'].float() for side in 'AB')\n"
        "                value = (value.float() + up @ down * 2.0).to(value.dtype)\n"
        "            wrong += not torch.equal(value, merged.get_tensor(key))\n"
        "print(wrong)\n"
    )
    return int(execute([sys.executable, "-c", code, str(folder)], folder))


def seconds_of(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall time of a process, and the largest resident set in MiB."""
    started = time.perf_counter()
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                                   env=environment(folder))  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{command}: failed\n{(folder / 'log').read_text()[-3000:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB


def environment(folder: Path) -> dict[str, str]:
    """A cache of its own: the first fingerprint is a first one."""
    return os.environ | {"PEFTRUN_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}


def execute(command: list[str], folder: Path) -> str:
    """What the command prints. A failure ends the benchmark."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True, env=environment(folder))
    return done.stdout


def summed(each: list[tuple[float, float]], found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Ratios, seconds and memory of one contestant."""
    seconds, memory = [value[0] for value in each], [value[1] for value in each]
    against = {"times_cp": COPY, "times_cp_sync": FLUSHED, "times_peft": PEFT}
    ratios = {key: report.ratios(seconds, [value[0] for value in found[name]]) for key, name in against.items()}
    share = report.ratios(memory, [value[1] for value in found[PEFT]])
    return {**ratios, "memory_of_peft": share, "seconds": report.spread(seconds), "peak_mib": report.spread(memory)}


HEADER = ["process", "÷ cp -r", "÷ cp -r, sync", "÷ PEFT", "peak ÷ PEFT's", "seconds", "peak MiB"]


def row(name: str, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    ratios = [report.cells(found[key]) for key in ("times_cp", "times_cp_sync", "times_peft", "memory_of_peft")]
    return [name, *ratios, report.cells(found["seconds"], 1), report.cells(found["peak_mib"], 0)]


def intro(found: dict[str, Any], layers: int) -> str:
    """The base in words, and the fingerprint's time against reading the files once."""
    prints = found["fingerprint_seconds"]
    return (
        f"**{layers} layers**: {found['base_bytes'] / 1e9:.1f} GB in {found['shards']} shards, bfloat16. Whole-process wall "
        "time and peak resident memory, median (min–max) of interleaved rounds. Fingerprint of the base, whole process: "
        f"first {prints['first']:.2f} s, cached {prints['cached']:.2f} s; `cat` of its files {found['read_seconds']:.2f} s."
    )


if __name__ == "__main__":
    main()
