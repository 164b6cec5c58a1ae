"""The commands that the documentation shows: of fenced blocks, of code between ticks, of the second line of every YAML file in conf/."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TUTORIAL, PROGRAMS_OF_RUNS = "docs/tutorial.md", ("peftrun", "curl")
PROGRAMS = ("peftrun", "make", "python", "pip", "curl", "cp")
FENCE = re.compile(r"^ *(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<body>.*?)^ *(?P=fence)", re.MULTILINE | re.DOTALL)
TABLE, COMPLETED = "| typed | TAB completes |", re.compile(r"^\| `peftrun [^`]*` \| [^|]*\|$")
SPAN = re.compile(r"(?P<ticks>`+)(?!`)(?P<code>[^\n]+?)(?<!`)(?P=ticks)(?!`)")


@dataclass(frozen=True)
class Command:
    """One command as it is shown, and where."""

    text: str
    file: str
    line: int
    shown: tuple[str, ...] = ()  # the lines below it, up to the next command
    completed: str = ""  # what TAB makes of it, as its table says

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def program(self) -> str:
        return self.words[0]

    @property
    def refused(self) -> list[str]:
        """The lines of a refusal, where one is shown."""
        return [line for line in self.shown if line.startswith("peftrun: ")]

    @property
    def serves(self) -> bool:
        """Whether it goes on until it is stopped."""
        return bool({"action=serve", "action=browse"} & set(self.words))

    @property
    def of_shell(self) -> bool:
        """Whether it needs a shell: for a pipe, a file to write to, another command inside."""
        return bool({"|", ">", "&"} & set(self.words)) or "$(" in self.text


def all_commands() -> list[Command]:
    """Every command that is shown, in the order of the files."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    shown = [command for page in pages for command in of_page(page)]
    typed_elsewhere = {TUTORIAL: PROGRAMS_OF_RUNS}  # test_tutorial.py types those
    shown = [one for one in shown if one.program not in typed_elsewhere.get(one.file, ())]
    return shown + [command for path in sorted((ROOT / "conf").rglob("*.yaml")) for command in of_option(path)]


def of_page(page: Path) -> Iterator[Command]:
    """The commands of a page: whole lines of its blocks, and code between ticks."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    for block in FENCE.finditer(text):
        if block["language"].strip() in ("", "bash", "sh", "console"):
            for offset, line in of_block(block["body"]):
                lines = tuple(below(block["body"], offset))
                yield Command(line, name, text.count("\n", 0, block.start("body")) + offset + 1, lines)
    bare = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for number, line in enumerate(bare.split("\n"), 1):
        for span in SPAN.finditer(line):
            code = span["code"].replace("\\|", "|")
            if is_command(code) and " " in code:
                after_tab = line.split("|")[2] if COMPLETED.match(line) and TABLE in bare else ""
                yield Command(code, name, number, completed=after_tab)


def of_block(body: str) -> Iterator[tuple[int, str]]:
    """Line and text of each command of a block; a line that ends in a backslash goes on."""
    lines, number = body.split("\n"), 0
    while number < len(lines):
        first, text = number, lines[number].strip().removeprefix("$ ")
        while text.endswith("\\") and number + 1 < len(lines):
            number += 1
            text = f"{text[:-1]} {lines[number].strip()}"
        while is_command(text) and not closed(text) and number + 1 < len(lines):
            number += 1
            text = f"{text}\n{lines[number]}"
        number += 1
        if is_command(text):
            yield first, text


def below(body: str, offset: int) -> Iterator[str]:
    """The lines below a command of a block, up to the next one."""
    for line in body.split("\n")[offset + 1 :]:
        if line.startswith("$ ") or not line.strip():
            return
        yield line


def distinct(commands: list[Command]) -> list[Command]:
    """The commands without repetitions: where each stands first."""
    found: dict[tuple[str, ...], Command] = {}
    for command in commands:
        found.setdefault(tuple(command.words), command)
    return list(found.values())


def of_option(path: Path) -> Iterator[Command]:
    """What a YAML file of conf/ says to type: one command, or several with a word on each."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:3], 1):
        if line.startswith("# peftrun "):
            for part in line.removeprefix("# ").split("   |   "):
                yield Command(part[part.index("peftrun") :].strip(), path.relative_to(ROOT).as_posix(), number)


def closed(text: str) -> bool:
    """Whether every quotation of a command ends in it."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def is_command(text: str) -> bool:
    """Whether a text is a command of those that are tested; `peftrun:` begins a message, `peftrun/` a path."""
    return text.split(" ", maxsplit=1)[0] in PROGRAMS
