"""Runs one command line many times in forked children that are killed, or whose disk is full. Prints JSON; see test_crash.

A process of its own, since only one that has computed nothing yet, but has everything imported, may fork safely.

    python crashing.py kill|full FOLDER SEED TRIALS ARGUMENT…
"""

import builtins
import errno
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

TARGET = "near/new"  # what every command line writes, below the trial's folder
CALLS = ("write", "fsync", "rename", "replace", "mkdir", "copy_file_range")


def child(where: Path, arguments: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Starts the command line in `where`; its process number."""
    pid = os.fork()
    if pid:
        return pid
    os.chdir(where)
    out = os.open("out.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["peftrun", *arguments]
    code = 1
    try:
        before()
        from peftrun.cli.main import main

        code = main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def halfway(where: Path) -> bool:
    """Whether the temporary sibling of the target is there."""
    return any(path.name.startswith(".") for path in (where / TARGET).parent.glob("*"))


def unharmed(where: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds from the start to the first sight of the temporary sibling, to its last, and to the end."""
    started, seen = time.perf_counter(), []
    pid = child(where, arguments)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if halfway(where):
            seen.append(time.perf_counter() - started)
        time.sleep(0.0005)
    return {"begin": seen[0], "end": seen[-1], "all": time.perf_counter() - started}


def killed(where: Path, arguments: list[str], draw: random.Random, times: dict[str, float], aimed: bool) -> str:
    """Kills it at a random moment: of the whole run or, if aimed, of the write. When that was: before, during, after."""
    pid = child(where, arguments)
    if aimed:
        while not halfway(where) and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.0002)
        time.sleep(draw.uniform(0, 1.1) * (times["end"] - times["begin"]))
    else:
        time.sleep(draw.uniform(0, times["all"]))
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return "after"
    if halfway(where):
        return "during"
    return "after" if (where / TARGET).exists() else "before"


def disk(full_after: int | None, count: Callable[[], int]) -> Callable[[], None]:
    """What makes every call that needs room fail from the `full_after`-th on; None: they are only counted."""

    def watched(call: Callable) -> Callable:
        def maybe(*args, **kwargs):
            if count() > (full_after if full_after is not None else sys.maxsize):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        return maybe

    def install() -> None:
        for name in CALLS:
            setattr(os, name, watched(getattr(os, name)))
        plain, guarded = builtins.open, watched(builtins.open)
        builtins.open = lambda file, mode="r", *a, **k: (plain if set(mode) <= set("rbt") else guarded)(
            file, mode, *a, **k
        )

    return install


def filled(where: Path, arguments: list[str], full_after: int | None) -> tuple[int, int]:
    """Exit code, and the number of calls that needed room."""
    counted, report = [0], where / "count"

    def count() -> int:
        counted[0] += 1
        handle = os.open(report, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.pwrite(handle, str(counted[0]).encode(), 0)  # not among the watched calls
        os.close(handle)
        return counted[0]

    _, status = os.waitpid(child(where, arguments, disk(full_after, count)), 0)
    os.rename(where / "out.txt", where / "first.txt")
    return os.waitstatus_to_exitcode(status), int(report.read_text())


def main() -> None:
    """One unharmed run in `FOLDER/whole`, then the trials in `FOLDER/0`, `FOLDER/1`, …"""
    how, folder, seed, trials, arguments = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:]
    import peftrun.actions.merge
    import peftrun.actions.save  # noqa: F401

    draw = random.Random(seed)
    whole = folder / "whole"
    found = []
    if how == "kill":
        times = unharmed(whole, arguments)
        for trial in range(trials):
            found.append(killed(folder / str(trial), arguments, draw, times, aimed=trial % 2 == 0))
    else:
        unharmed(whole, arguments)  # fills the cache of fingerprints, which then needs no room any more
        _, calls = filled(folder / "counted", arguments, None)
        for trial in range(trials):
            place = calls * trial // trials
            found.append([*filled(folder / str(trial), arguments, place), place])
    again = [
        unharmed(folder / str(trial), arguments)
        for trial in range(trials)
        if not (folder / str(trial) / TARGET).exists()
    ]
    print(json.dumps({"found": found, "again": len(again)}))


if __name__ == "__main__":
    main()
