"""The tutorial, typed from beginning to end on the real embedded model in one shell, and what it shows compared with what comes out."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
END = "@@ended"
FIGURE = re.compile(r"[-−]?\d(?:[\d,.]*\d)?(?:e[-+]?\d+)?")
OWN_WORDS = re.compile(r"\b(spam|ham|seconds?|minutes?|min|s|h|KB|MB|GB|kB)\b")  # of the model, of a time, of a size
LARGER_UNIT = re.compile(r"\b\d+ (?:h|min) (?=\d+ (?:min|s)\b)")
SAID_OTHERWISE = {"lora.rank=4"}  # commands that are shown to be refused


@dataclass(frozen=True)
class Step:
    """A command of the page, and the lines shown below it."""

    command: str
    shown: list[str]


def steps() -> list[Step]:
    """All commands in order; a line that ends in a backslash goes on."""
    found: list[Step] = []
    for block in re.findall(r"^```\n(\$ .*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        lines = block.rstrip("\n").replace("\\\n", " ").split("\n")
        for line in lines:
            if line.startswith("$ "):
                found.append(Step(line.removeprefix("$ "), []))
            else:
                found[-1].shown.append(line)
    return found


def figureless(line: str) -> str:
    """A line without its figures, with single spaces; `1 min 15 s` like `15 s`."""
    return " ".join(OWN_WORDS.sub("~", FIGURE.sub("~", LARGER_UNIT.sub("", line))).split())


def check_shown(shown: list[str], came_out: str) -> None:
    """Each line that is shown came out, in this order; `…` stands for any number of lines, in a line for any words."""
    rest = [figureless(line) for line in came_out.splitlines()]
    anything = False
    for line in shown:
        if line == "…":
            anything = True
            continue
        # A model of a few steps writes ham or Ham, as a processor's last digits fall.
        wanted = re.compile(re.escape(figureless(line)).replace("…", ".*"), re.IGNORECASE)
        found = next((index for index, one in enumerate(rest) if wanted.match(one)), None)
        assert found is not None, f"not seen: {line}\n{came_out}"
        assert anything or found == 0, f"before {line!r}: {rest[:found]}"
        rest, anything = rest[found + 1 :], False
    assert anything or not rest or not shown, f"more came out than is shown: {rest}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def script(all_steps: list[Step], port: int) -> str:
    """What bash reads: the commands as they are, each followed by a mark with its exit code."""
    lines = ["set -m", "exec 2>&1"]
    for step in all_steps:
        lines += [
            step.command.replace(":8000", f":{port}").replace("action=serve", f"action=serve port={port}"),
            f'echo "{END} $?"',
        ]
    return "\n".join([*lines, "kill $(jobs -p) 2>/dev/null; wait", ""])


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(2400)
def test_the_tutorial_from_beginning_to_end(tmp_path):
    every = steps()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc"], input=script(every, free_port()), cwd=tmp_path, env=os.environ | {"PATH": path},
        capture_output=True, text=True, timeout=2300, check=False,
    )  # fmt: skip
    parts = re.split(rf"{END} (\d+)\n", done.stdout)
    outputs, codes = parts[0:-1:2], [int(code) for code in parts[1::2]]
    assert len(codes) == len(every), done.stdout
    for step, output, code in zip(every, outputs, codes, strict=True):
        refused = any(words in step.command for words in SAID_OTHERWISE)
        assert code == (1 if refused else 0), f"{step.command}\n{output}"
        check_shown(step.shown, output)


def test_the_comparison_sees_what_is_not_so():
    came_out = "one 1\ntwo 2.5 MB\nthree\n"
    check_shown(["one 7", "two 3 GB", "three"], came_out)
    check_shown(["…", "t…o 3 MB", "…"], came_out)
    for shown in (["two 2.5 MB"], ["…", "three", "two 2"], ["one 1", "…", "four", "…"], ["one 1"]):
        with pytest.raises(AssertionError):
            check_shown(shown, came_out)


def test_every_command_of_the_page_is_typed():
    typed = {step.command.split(" ")[0] for step in steps()}
    assert typed == {"peftrun", "ls", "curl", "kill"} and len(steps()) > 14
