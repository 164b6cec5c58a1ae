"""A merge from files to files, against PEFT's `merge_and_unload` + `save_pretrained` and against `cp -r` and `sync` of the base.

Builds random Llamas of 0.5, 2 and 7 billion parameters in bfloat16, a layer a file, with a LoRA of rank 16 on q and v and one on every linear
layer. Each contestant is a process of its own, from its start to its exit, with an empty cache of fingerprints; all run once a round, one
after another, and a ratio is taken within its round. Peak memory is the largest resident set of the process, Python and libraries included.
peftrun flushes what it wrote to the disk before it ends, so `cp -r` is followed by `sync`; PEFT flushes nothing. Every merged tensor is
compared: ours must be the sum computed in float32 and rounded once. Needs 30 GB of disk for 7 billion; what needs more memory than there
is is not run.

    python benchmarks/merge.py [--repeats N] [--sizes 0.5 2 7] [--folder FOLDER] [--output benchmarks/results/merge.md]
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
from merge_contestants import SIZES, TARGETS

from peftrun.system import free_memory

CONTESTANTS = Path(__file__).with_name("merge_contestants.py")
COPY = "cp -r, sync"
MIB = 2**20


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--folder", type=Path, help="where to build and write; default: the system's temporary folder")
    parser.add_argument("--output", type=Path, default=report.RESULTS / "merge.md")
    options = parser.parse_args()
    where, parts, figures = report.machine(), [], {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            subprocess.run([sys.executable, str(CONTESTANTS), "build", name, size], check=True, env=environment(folder))
            figures[size] = measured(folder, options.repeats)
        parts += [
            f"**{size} billion parameters**: {figures[size]['base_bytes'] / 1e9:.1f} GB, bfloat16.",
            table(figures[size]),
        ]
        report.write(options.output, "A merge from files to files", parts, figures, where)


def measured(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds and peak memory of each contestant in each round; the base's size."""
    size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for name, command in contestants(folder, size).items():
            shutil.rmtree(folder / "cache", ignore_errors=True)
            os.sync()  # what the one before left unwritten is not this one's
            found.setdefault(name, []).append(seconds_of(command, folder))
            if "peftrun merge" in name and differing(folder, name.split(", ")[1]):
                sys.exit(f"{name}: merged tensors are not the float32 sum rounded once")
            shutil.rmtree(folder / "out", ignore_errors=True)
    return {"base_bytes": size, "processes": found}


def contestants(folder: Path, size: int) -> dict[str, list[str]]:
    """Command lines by name, of those for which there is memory."""
    base, out = str(folder / "base"), str(folder / "out")
    commands = {COPY: ["sh", "-c", f"cp -r {base} {out} && sync"]}
    for adapter in TARGETS:
        ours = [
            sys.executable, "-m", "peftrun", "model=pretrained", f"model.name_or_path={base}", "device=cpu",
            f"adapter={folder / adapter}", f"hydra.run.dir={folder / 'out' / 'run'}",
        ]  # fmt: skip
        merge = [*ours, "action=merge", f"action.output_dir={out}/merged", "action.num_eval_rows=0"]
        commands[f"peftrun merge, {adapter}, unproved"] = [*merge, "action.verify=false"]
        commands[f"peftrun merge, {adapter}, proved"] = merge
        commands[f"peftrun reload, {adapter}"] = [*ours, "action=reload", "action.evaluate=false"]
        for dtype, times in (("bfloat16", 1), ("float32", 2)):
            if times * size < free_memory.get_resident_limit().bytes:
                commands[f"PEFT, {adapter}, {dtype}"] = [
                    sys.executable, str(CONTESTANTS), "merge", str(folder), adapter, out, dtype,
                ]  # fmt: skip
    return commands


def differing(folder: Path, adapter: str) -> int:
    """Number of merged tensors that are not W + s·B·A, computed in float32 and rounded once."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from safetensors import safe_open\n"
        "from safetensors.torch import load_file\n"
        f"folder = Path(sys.argv[1]); lora = load_file(folder / {adapter!r} / 'adapter_model.safetensors'); wrong = 0\n"
        "for file in sorted((folder / 'base').glob('*.safetensors')):\n"
        "    with safe_open(file, 'pt') as base, safe_open(folder / 'out/merged' / file.name, 'pt') as merged:\n"
        "        for key in base.keys():\n"
        "            path = 'base_model.model.' + key.removesuffix('.weight'); value = base.get_tensor(key)\n"
        "            if path + '.lora_A.weight' in lora:\n"
        "                down, up = (lora[f'{path}.lora_{side}.weight'].float() for side in 'AB')\n"
        "                value = (value.float() + up @ down * 2.0).to(value.dtype)\n"
        "            wrong += not torch.equal(value, merged.get_tensor(key))\n"
        "print(wrong)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


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
    """A cache of its own: a fingerprint is a first one."""
    return os.environ | {"PEFTRUN_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}


def table(found: dict[str, Any]) -> str:
    """A row for each contestant."""
    processes = found["processes"]
    copied = [seconds for seconds, _ in processes[COPY]]
    rows = [
        [
            name,
            report.cells(report.ratios([seconds for seconds, _ in each], copied)),
            report.cells(report.spread(seconds for seconds, _ in each), 1),
            "–" if name == COPY else report.cells(report.spread(memory for _, memory in each), 0),
        ]
        for name, each in processes.items()
    ]
    return report.table(["process", f"÷ {COPY}", "seconds", "peak MiB"], rows)


if __name__ == "__main__":
    main()
