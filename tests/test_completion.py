"""Tab completion, in the shells themselves: what is typed, a press of TAB, and what then stands on the line or is listed below it."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import cases

from peftrun.cli.completion.candidates import find_candidates
from peftrun.config import paths

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
START = {"bash": ["bash", "--noprofile", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}
INSTALL = 'eval "$(peftrun -sc install={})"\n'
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r|\x07|\x08")
INPUTRC = "set show-all-if-ambiguous on\nset bell-style none\nset completion-query-items -1\nset page-completions off\nset enable-bracketed-paste off\n"
TEMPLATE = """# @package _global_
# Ours.
# peftrun experiment=ours
params: {rows: '???', rank: 8}
template:
  name: ours
  version: "1"
  params: {rows: {type: path, help: Rows.}, rank: {type: int, help: The rank.}}
task: {data: {source: file, path: "${params.rows}"}}
lora: {r: "${params.rank}"}
"""
# What is typed before TAB → what the last word then is.
BECOMES = {
    "peftrun lora=do": "lora=dora",
    "peftrun trainer.learn": "trainer.learning_rate=",
    "peftrun action=repl": "action=replay",
    "peftrun action=replay action.ru": "action.run=",
    "peftrun action=replay ru": "run=",
    "peftrun experiment=quick": "experiment=quick_look",
    "peftrun hydra/launcher=shared_base_s": "hydra/launcher=shared_base_slurm",
    "peftrun -m lora=lora,dor": "lora=lora,dora",
    "peftrun trainer.optim=adaf": "trainer.optim=adafactor",
    "peftrun --config-dir TEAM lora=our": "lora=ours",
    "peftrun action=reload adapter=runs/fir": "adapter=runs/first/",
    "peftrun lora=adalora lora.tin": "lora.tinit=",
}


@pytest.fixture
def home(tmp_path):
    """A folder with a team's option and a run in it, where the shell starts."""
    (tmp_path / "team" / "lora").mkdir(parents=True)
    (tmp_path / "team" / "lora" / "ours.yaml").write_text("# Ours.\n# peftrun lora=ours\ndefaults: [lora, _self_]\n")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / ".inputrc").write_text(INPUTRC)
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    known = {"HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "> ", "LISTMAX": "9999"}
    return os.environ | known | {"ZDOTDIR": str(home), "INPUTRC": str(home / ".inputrc"), "COLUMNS": "200"}


class Shell:
    """An interactive shell at a pseudo-terminal."""

    def __init__(self, name: str, home: Path, begin: str | None = None) -> None:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(home)
            os.execvpe(name, START[name], environment(home))
        self.seen = ""
        self.type("bindkey -e 2>/dev/null; stty cols 200 2>/dev/null; " + (begin or INSTALL.format(name)))
        self.type("echo rea''dy\n")
        self.until("ready\r")

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def until(self, pattern: str, seconds: float = 60) -> str:
        """What the terminal has shown since the last call, once the pattern is in it."""
        start, ends = len(self.seen), time.monotonic() + seconds
        while not re.search(pattern, self.seen[start:]):
            assert time.monotonic() < ends, f"waited for {pattern!r}: {self.seen[start:]!r}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                self.seen += os.read(self.terminal, 65536).decode(errors="replace")
        return ESCAPES.sub("", self.seen[start:])

    def last_word_after_tab(self, typed: str) -> str:
        # The completed line is not run: its words are handed to printf, by going to the start of the line.
        self.type(f"{typed}\t\x01printf 'wo''rd %s\\n' \x05; echo fini''shed\n")
        shown = self.until(r"finished\r")
        return re.findall(r"^word (.*)$", shown, re.MULTILINE)[-1]

    def listed_after_tab(self, typed: str, last: str) -> str:
        self.type(f"{typed}\t\t")  # zsh first writes what all have in common
        shown = self.until(re.escape(last))
        self.type("\x15echo clea''red\n")  # Ctrl-U takes the line away
        return shown + self.until(r"cleared\r")

    def close(self) -> None:
        os.close(self.terminal)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


@pytest.fixture(params=list(START))
def shell(request, home):
    opened = Shell(request.param, home)
    yield opened
    opened.close()


def test_a_word_is_completed(shell, home):
    for typed, whole in BECOMES.items():
        assert shell.last_word_after_tab(typed.replace("TEAM", str(home / "team"))) == whole, typed


def test_what_is_ambiguous_is_listed(shell):
    shown = shell.listed_after_tab("peftrun action=", "unmerge")
    assert all(name in shown for name in paths.list_group_options("action"))
    shown = shell.listed_after_tab("peftrun experiment=", "translation")
    assert all(name in shown for name in paths.list_group_options("experiment"))
    shown = shell.listed_after_tab("peftrun lo", "lora=")
    assert "lora." in shown


def test_fish_completes(home):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    asked = [typed.replace("TEAM", str(home / "team")) for typed in [*BECOMES, "peftrun action="]]
    script = "peftrun -sc install=fish | source\n" + "".join(f"complete -C '{typed}'; echo end\n" for typed in asked)
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        check=True,
    )
    *found, actions, rest = done.stdout.split("end\n")
    assert not rest and len(found) == len(BECOMES)
    for answer, whole in zip(found, BECOMES.values(), strict=True):
        assert whole in [line.partition("\t")[0] for line in answer.splitlines()], (whole, answer)
    assert {line.partition("\t")[0].partition("=")[2] for line in actions.splitlines()} == set(
        paths.list_group_options("action")
    )


@cases("name", ["bash", "zsh", "fish"])
def test_a_shell_forgets_it_again(name, home):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    begin = {"zsh": "autoload -Uz compinit; compinit -i -D;"}.get(name, "")
    script = f"{begin} peftrun -sc install={name} > in; . ./in; peftrun -sc uninstall={name} > out; . ./out"
    done = subprocess.run(
        [name, "-c", script], cwd=home, env=environment(home), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr


def installed_for_good(name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([BIN / "peftrun", "-sc", f"install={name}"], capture_output=True, text=True, check=True)
    assert not done.stderr
    path.write_text(done.stdout)


@cases(
    "name, begin",
    [("bash", ". HOME/peftrun\n"), ("zsh", "fpath=(HOME $fpath); autoload -Uz compinit; compinit -i -D\n")],
)
def test_a_file_that_the_shell_reads_by_itself(name, begin, home):
    installed_for_good(name, home / {"bash": "peftrun", "zsh": "_peftrun"}[name])
    opened = Shell(name, home, begin.replace("HOME", str(home)))
    assert opened.last_word_after_tab("peftrun lora=do") == "lora=dora"
    assert opened.last_word_after_tab("peftrun lora=piss") == "lora=pissa"  # zsh has now read the file
    opened.close()


def test_a_file_that_fish_reads_by_itself(home):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    installed_for_good("fish", home / ".config" / "fish" / "completions" / "peftrun.fish")
    done = subprocess.run(
        ["fish", "-c", "complete -C 'peftrun lora=do'"],
        cwd=home,
        env=environment(home) | {"XDG_CONFIG_HOME": str(home / ".config")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("lora=dora\tDoRA: ")


def test_what_hydra_keeps_for_itself_is_not_offered():
    assert not [text for text in find_candidates("peftrun ") if "schemas" in text or text.startswith("hydra")]
    assert not [text for text in find_candidates("peftrun hydra/launcher=") if text.endswith("_class")]
    assert not [
        text for text in find_candidates("peftrun hydra/launcher=shared_base hydra.launcher.") if "_target_" in text
    ]


def test_values_come_from_the_types():
    assert set(find_candidates("peftrun model.quantization=")) == {
        f"model.quantization={word}"
        for word in ("null", "nf4", "fp4", "int8", "torchao_int8", "torchao_fp8", "torchao_int4")
    }
    assert set(find_candidates("peftrun lora.use_dora=")) == {"lora.use_dora=true", "lora.use_dora=false"}
    assert set(find_candidates("peftrun trainer.save_steps=")) == {"trainer.save_steps=20"}
    assert set(find_candidates("peftrun lora=boft lora.boft_b")) == {"lora.boft_block_size="}


def test_slots_of_a_template_are_offered(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "experiment" / "ours.yaml").write_text(TEMPLATE)
    asked = f"peftrun --config-dir {tmp_path} experiment=ours params."
    assert set(find_candidates(asked)) == {"params.rows=", "params.rank="}
    assert set(find_candidates(f"{asked}rank=")) == {"params.rank=8"}
    assert set(find_candidates(f"{asked}rows={tmp_path}/ro")) == {f"params.rows={tmp_path}/rows.jsonl"}


@cases("line", ["", "peftrun 'lora", "peftrun lora=nosuch lora.zz", "peftrun nosuch=", "peftrun a.b.c="])
def test_what_cannot_be_read_finds_nothing(line):
    assert not [text for text in find_candidates(line) if text.startswith(("lora.zz", "nosuch", "a.b", "'"))]


def test_an_unknown_shell_is_one_line(home):
    done = subprocess.run([BIN / "peftrun", "-sc", "install=tcsh"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "install=bash" in done.stderr
