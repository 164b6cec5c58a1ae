"""Folders of records made of one real run, each changed a little: what the catalogue is tried on; and its page, served."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from test_startup import PROBE

Change = Callable[[int, dict[str, Any]], dict[str, str]]
STEPS = 30


def copies(real: Path, outputs: Path, count: int, change: Change | None = None) -> list[Path]:
    """So many run folders below `outputs`. `change`: alters the record of a number in place; gives text → text for its config."""
    record, config = json.loads((real / "record.json").read_text()), (real / "config.yaml").read_text()
    folders = []
    for number in range(count):
        folder = outputs / "train" / f"2026-10-{1 + number % 28:02d}_10-00-00-{number:06d}"
        (folder / "adapter").mkdir(parents=True)
        (folder / ".hydra").mkdir()
        own, text = copy.deepcopy(record), config
        own["started"] = f"2026-10-{1 + number % 28:02d}T10:00:{number % 60:02d}+00:00"
        for old, new in (change(number, own) if change else {}).items():
            assert old in text, old
            text = text.replace(old, new)
        (folder / "record.json").write_text(json.dumps(own))
        (folder / "config.yaml").write_text(text)
        shutil.copy(real / ".hydra/hydra.yaml", folder / ".hydra")
        for file in (real / "adapter").glob("adapter_*"):
            shutil.copy(file, folder / "adapter")
        learned(folder, number)
        folders.append(folder)
    return folders


def learned(folder: Path, number: int) -> None:
    """Rows of metrics as a training leaves them."""
    rows = [
        {"step": step, "loss": 3 / (step + number % 5), "learning_rate": 1e-3 * (1 - step / STEPS)}
        | ({"eval_loss": 3.1 / step} if step % 10 == 0 else {})
        for step in range(1, STEPS + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def browsing(where, *args: str, program: str = PROBE) -> Iterator[tuple[str, subprocess.Popen]]:
    """Address and process of `peftrun action=browse`, ended as Ctrl-C does."""
    done = subprocess.Popen(
        [sys.executable, "-c", program, "action=browse", "port=0", *args],
        cwd=where,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        line = done.stdout.readline()
        assert line.startswith("browse http://"), done.stderr.read()
        yield line.split()[1], done
    finally:
        if done.poll() is None:
            done.send_signal(signal.SIGINT)
        done.communicate(timeout=30)
