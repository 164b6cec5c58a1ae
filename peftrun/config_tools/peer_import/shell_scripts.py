"""The training command in a shell script, as keys and values. Light."""

import re
import shlex
from pathlib import Path
from string import Template
from typing import Any

import yaml

from peftrun.config.peers import tables
from peftrun.errors import DataError

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
COMMENT = re.compile(r"(?:^|\s)#.*")
EXPRESSION = re.compile(r"\$\(\s*expr\s+(\d+(?:\s+[*/]\s+\d+)*)\s*\)")
PROCESSES = "NPROC_PER_NODE"
TRAININGS = ("sft", "pt", "rlhf", "train", "dpo", "orpo", "kto", "reward", "grpo")  # commands of tools that train
CONFIG_FLAGS = ("config", "config_file")


class TrainingCommand:
    """A command that trains.

    Attributes:
        tool: its tool. command: the word that chose the training, such as sft.
        files: YAML files that it names. keys: its flags and `key=value`.
    """

    def __init__(self, tool: str, command: str, words: list[str], environment: dict[str, str]) -> None:
        self.tool, self.command = tool, command
        self.files = [Path(word) for word in words if word.endswith((".yaml", ".yml", ".json"))][:1]
        self.keys: dict[str, Any] = {
            name: parse_scalar(value) for name, value in environment.items() if name == PROCESSES
        }
        self.keys |= _parse_arguments([word for word in words if Path(word) not in self.files])


def read_script(path: Path) -> TrainingCommand:
    """The only training command of a script. Raises: DataError: there is none of a known tool, or more than one."""
    text = path.read_text(encoding="utf-8")
    return find_command(text, str(path))


def find_command(text: str, where: str) -> TrainingCommand:
    """The same of the script's text. `where`: names it in the message."""
    variables: dict[str, str] = {}
    found = []
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        try:
            words = shlex.split(EXPRESSION.sub(_compute, Template(COMMENT.sub("", line)).safe_substitute(variables)))
        except ValueError:  # an open quote: the arguments of another program
            continue
        environment: dict[str, str] = {}
        while words and (match := ASSIGNMENT.fullmatch(words[0])):
            environment[match[1]] = match[2]
            words = words[1:]
        if not words:
            variables |= environment
        elif command := _parse_command(words, variables | environment):
            found.append(command)
    if len(found) != 1:
        what = f"has {len(found)} training commands" if found else "has no training command of a known tool"
        raise DataError(
            f"action.source={where}: {what}; put the one into a file of its own (swift sft …, trl sft …, llamafactory-cli train …)"
        )
    return found[0]


def _compute(expression: re.Match[str]) -> str:
    """The value of a shell's `$(expr 16 / 2)`."""
    first, *rest = expression[1].split()
    result = int(first)
    for sign, number in zip(rest[::2], map(int, rest[1::2]), strict=True):
        result = result * number if sign == "*" else result // max(number, 1)
    return str(result)


def _parse_command(words: list[str], environment: dict[str, str]) -> TrainingCommand | None:
    for tool in tables.TOOLS:
        for position, word in enumerate(words):
            if word not in tables.read_table(tool).commands and Path(word).stem not in TRAININGS:
                continue
            following = words[position + 1 :]
            if word in tables.read_table(tool).commands and following[:1] and following[0] in TRAININGS:
                return TrainingCommand(tool, following[0], following[1:], environment)
            if tool == "trl" and word.endswith(".py"):  # TRL's scripts: python trl/scripts/sft.py
                return TrainingCommand(tool, Path(word).stem, following, environment)
    return None


def _parse_arguments(words: list[str]) -> dict[str, Any]:
    """Values of `--key value …`, `--key=value` and `key=value`. A flag without a value is true."""
    keys: dict[str, Any] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, sign, value = word[2:].partition("=")
            name = name.replace("-", "_")
            keys[name] = [value] if sign else []
        elif name is not None:
            keys[name].append(word)
        elif "=" in word:
            key, _, value = word.partition("=")
            keys[key] = [value]
    return {
        key: True if not values else parse_scalar(values[0]) if len(values) == 1 else [*map(parse_scalar, values)]
        for key, values in keys.items()
        if key not in CONFIG_FLAGS
    }


def parse_scalar(text: str) -> Any:
    """A word of a command line as a number, a truth value, a mapping or text."""
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text):  # a text to YAML if it has no dot
        return float(text)
    if text[:1] not in "{[" and not re.fullmatch(r"[-+.\w]*", text):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
