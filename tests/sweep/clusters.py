"""What a test of a cluster needs: a sweep in a process of its own, whose worker is killed while it trains."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import snapshot

SHORT, LONG = 4, 600  # steps of the two cells: one is done long before the other
KEPT = ("record.json", ".safetensors", "metrics.jsonl")
GRID = [
    f"trainer.max_steps={SHORT},{LONG}", "trainer.warmup_steps=0", "trainer.save_steps=20", "trainer.logging_steps=1",
    "trainer.lr_scheduler_type=constant",
]  # fmt: skip


def records(where: Path) -> dict[int, tuple[Path, dict]]:
    """Steps asked for → folder and record of each cell that has one."""
    found = {}
    for path in where.glob("outputs/sweeps/*/*/record.json"):
        config = (path.parent / "config.yaml").read_text()
        steps = LONG if f"max_steps: {LONG}\n" in config else SHORT
        found[steps] = (path.parent, json.loads(path.read_text()))
    return found


def killed_once(where: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs `peftrun -m GRID ARGS`, and kills the process that trains the long cell when the short one is done."""
    command = [sys.executable, "-m", "peftrun", "-m", *GRID, *args]
    out, err = (where / "out.txt").open("w"), (where / "err.txt").open("w")
    with out, err, subprocess.Popen(command, cwd=where, stdout=out, stderr=err, stdin=subprocess.DEVNULL) as sweep:
        os.kill(training(where, sweep), signal.SIGKILL)
        code = sweep.wait(timeout=300)
    said = [(where / name).read_text() for name in ("out.txt", "err.txt")]
    return subprocess.CompletedProcess(command, code, *said)


def training(where: Path, sweep: subprocess.Popen[bytes]) -> int:
    """The process of the long cell, once that cell has begun its second checkpoint (so the first is whole) and the short one is done."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert sweep.poll() is None, (where / "err.txt").read_text()
        found = records(where)
        if len(found) == 2 and found[SHORT][1]["status"] == "completed":
            folder, record = found[LONG]
            assert record["status"] == "running", "the long cell was done before it could be killed"
            if len(list(folder.glob("checkpoints/checkpoint-*"))) > 1:
                keep(where, found[SHORT][0])
                return record["pid"]
        time.sleep(0.02)
    raise AssertionError((where / "err.txt").read_text())


def keep(where: Path, cell: Path) -> None:
    """Notes what the finished cell's folder is when the worker is killed."""
    (where / "finished.json").write_text(json.dumps(snapshot(cell)))


def check_completed(where: Path, done: subprocess.CompletedProcess[str]) -> None:
    """Both cells are complete: the short one as it was when the worker died, the long one from its checkpoint on."""
    assert done.returncode == 0, done.stderr
    assert "the worker died" in done.stderr and "sent again, 1 of 2" in done.stderr
    found = records(where)
    assert {record["status"] for _, record in found.values()} == {"completed"}
    finished = {path: digest for path, digest in snapshot(found[SHORT][0]).items() if path.endswith(KEPT)}
    before = json.loads((where / "finished.json").read_text())
    assert finished and finished == {path: before[path] for path in finished}
    folder, record = found[LONG]
    assert record["training"]["steps"] == LONG
    assert "checkpoint-" in record["resumed_from"]
    (attempt,) = folder.parent.glob(f"attempts/{folder.name}-*")  # the one that was killed
    assert json.loads((attempt / "record.json").read_text())["status"] == "running"


def check_interrupted(where: Path, *args: str) -> None:
    """Ctrl-C during `peftrun ARGS` ends the process that trains the long cell, whose record says so."""
    where.mkdir(exist_ok=True)
    with (where / "err.txt").open("w") as err:
        command = [sys.executable, "-m", "peftrun", *args]
        sweep = subprocess.Popen(command, cwd=where, stdout=err, stderr=err, start_new_session=True)
        worker = training(where, sweep)
        os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does
        assert sweep.wait(timeout=60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    _, record = records(where)[LONG]
    assert record["status"] == "interrupted"
    assert "Traceback" not in (where / "err.txt").read_text()
