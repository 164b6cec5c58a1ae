"""Every command that the documentation shows is run as a user would type it, on a desk of tiny models; what cannot be run here is listed, with why."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cases import NOT_INSTALLED, cases, where_installed

sys.path.insert(0, str(Path(__file__).parent))
import desk
import documented
import yaml

import peftrun
from peftrun.cli.completion.candidates import find_candidates
from peftrun.config import old_overrides, paths
from peftrun.config.search_path import old_files
from peftrun.errors import ConfigError

ROOT = Path(__file__).parents[2]
ALL = documented.all_commands()
# What is no command: the beginning of one (TAB completes it), or a form of one.
FORMS = {"peftrun experiment=", "peftrun OVERRIDES", "peftrun …", "peftrun action=serve …"}
# What a command needs that a machine like this lacks: it is composed and checked, not run. With more words: the check refuses it, with these in each line.
NOT_HERE: dict[str, tuple[str, ...]] = {
    r"device(\.name)?=(cuda|mps|xpu)\b": ("an accelerator of that kind",),
    r"max_memory=\{0:": ("an accelerator",),
    r"lora=lora_moe": ("a mixture of experts (test_experts.py builds one)",),
    r"device=deepspeed": ("the package deepspeed, a GPU", "device.strategy=deepspeed needs package=deepspeed"),
    r"device\.num_machines=": ("more machines",),
    r"task\.data\.source=hub|tasks=\[arc_easy": ("a data set of the Hub",),
    r"push_to_hub=true": ("a token of the Hub", "HF_HUB_OFFLINE is set", "there is no token for the Hub"),
    r"resume=ORG/NAME": ("a run on the Hub",),
    r"num_processes=2 .*resume=outputs": ("a run of four processes that was killed (test_distributed.py)",),
    r"https://HOST": ("a server of files",),
    r"=s3://": ("a bucket", "needs package s3fs"),
    r"push=true": ("a token of the Hub", "HF_HUB_OFFLINE is set", "there is no token for the Hub"),
    r"tracker\.mode=online": ("a key of wandb", "there is no key for api.wandb.ai"),
    r"tracker\.uri=http": ("a server of mlflow",),
    r"launcher=shared_base_slurm(?!.*cluster=local)": ("a SLURM cluster",),
    r"launcher=shared_base_ray": ("a Ray cluster (sweep/test_ray.py runs one)",),
}
PORT = ("port=", "action.port=")
# Minutes each, or a process for each rank, or one for each trial.
LONG = re.compile(
    r"device=(ddp|fsdp)|data_parallel|sweeper=optuna| -m |^peftrun -m |action=check\b(?!.*build=false)|device=offload|tasks=\[spam\]"
)
RUNS = tuple(c for c in documented.distinct(ALL) if c.program == "peftrun" and c.text not in FORMS and not c.completed)
HERE = [c for c in RUNS if not any(re.search(pattern, c.text) for pattern in NOT_HERE)]
ELSEWHERE = [c for c in RUNS if c not in HERE]


def by_page(commands):
    """The commands of each page, or folder of conf/, as one test."""
    pages = {}
    for command in commands:
        page = command.file if command.file.endswith(".md") else command.file.rpartition("/")[0]
        pages.setdefault(f"{page} (long)" if LONG.search(command.text) else page, []).append(command)
    return [pytest.param(found, id=page) for page, found in pages.items()]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return desk.shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def here(shelf, tmp_path, monkeypatch):
    """A desk of one's own, standard input at its end."""
    sit_down(tmp_path, shelf, monkeypatch)
    return tmp_path


def sit_down(folder, shelf, monkeypatch, words=()):
    folder.mkdir(exist_ok=True)
    desk.lay(folder, shelf, words)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


@pytest.mark.slow
@pytest.mark.parametrize("commands", by_page([one for one in HERE if not one.serves and not one.of_shell]))
def test_commands_do_what_they_say(commands, cli, shelf, tmp_path, monkeypatch, subtests):
    for number, command in enumerate(commands):
        with subtests.test(command.where), monkeypatch.context() as patch:
            sit_down(tmp_path / str(number), shelf, patch, command.words)
            check_command(command, cli)


def check_command(command, cli):
    args = desk.as_typed(command.words[1:]) if command.refused else desk.on_desk(command.words[1:])
    if "action.resume=auto" in args:
        args.append("trainer.save_steps=2")
        desk.interrupted(cli(*(word for word in args if word != "action.resume=auto")))
    done = cli(*args)
    if command.refused:
        assert done.code == 1
        assert [line for line in done.err.splitlines() if line.startswith("peftrun: ")] == command.refused
    elif {"action=replay", "seed=1"} <= set(args):  # another run on purpose
        assert done.code == 1 and "the result differs" in done.err, done.err
    else:
        assert done.code == 0, (shlex.join(args), done.err)


OF_README = [c for c in HERE if c.file == "README.md" and not (c.of_shell or c.refused or " --" in c.text)]


@cases("command", [*OF_README, *ELSEWHERE], ids=lambda command: command.where, every=2)
def test_what_cannot_run_here_is_composed_and_checked(command, here, monkeypatch):
    """So are the commands of the README, which `make test` would take too long to run."""
    monkeypatch.chdir(here)
    lines = next((lines for pattern, (_, *lines) in NOT_HERE.items() if re.search(pattern, command.text)), [])
    args = [first(word) for word in desk.on_desk(command.words[1:]) if word != "-m"]
    if lines:
        with pytest.raises(ConfigError) as refused:
            peftrun.load(*args)
        assert all(any(line in told for line in [*lines, NOT_INSTALLED]) for told in refused.value.lines), (
            refused.value.lines
        )
    else:
        with where_installed():
            peftrun.load(*args)


def first(word):
    """The first value of a swept override."""
    key, sign, value = word.partition("=")
    swept = "," in value and value[:1] not in "[{'\"" and "(" not in value and not key.startswith("hydra")
    return f"{key}{sign}{value.split(',')[0]}" if swept else word


def test_the_pages_use_todays_names():
    """Of keys and options: in commands, in files of YAML, and in what the README lists."""
    for command in RUNS:
        _, lines = old_overrides.rename_overrides(command.words[1:])
        assert not lines, (command.where, lines)
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
            assert not old_files.rename_file(yaml.safe_load(block), "experiment", "")[1], page
    listed = re.search(
        r"`peftrun experiment=sms_spam`(.*?) vary the default", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert listed and {*re.findall(r"`(\w+)`", listed[1])} <= {*paths.list_group_options("experiment")}


def test_nothing_is_left_out_in_silence():
    counted = {
        why: len([c for c in ELSEWHERE if re.search(pattern, c.text)]) for pattern, (why, *_) in NOT_HERE.items()
    }
    assert all(counted.values()), counted
    assert len(ELSEWHERE) <= 60, [command.text for command in ELSEWHERE]
    assert len(HERE) > 150 and {"README.md", "docs/sweeps.md"} <= {command.file for command in ALL}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert files == {command.file for command in ALL if command.file.startswith("conf/")}


@pytest.mark.slow
@cases("command", [one for one in documented.distinct(ALL) if one.completed], ids=lambda command: command.text)
def test_a_line_before_tab_is_completed_as_the_page_says(command, here, monkeypatch):
    monkeypatch.chdir(here)
    (here / "configs" / "lora").mkdir(parents=True, exist_ok=True)
    (here / "configs" / "lora" / "ours.yaml").write_text("# Ours.\n# peftrun lora=ours\ndefaults: [lora, _self_]\n")
    found = find_candidates(command.text)
    named = [word for word in re.findall(r"`([^`]+)`", command.completed) if "=" in word]
    assert found and all(any(one.startswith(word) for one in found) for word in named), found


@pytest.mark.slow
@cases("command", [one for one in HERE if one.of_shell], ids=lambda command: command.where)
def test_a_command_of_the_shell(command, tmp_path, shelf, monkeypatch):
    here = tmp_path
    sit_down(here, shelf, monkeypatch)
    (here / "FOLDER").mkdir()
    for folder in (".local/share/bash-completion/completions", ".config/fish/completions", "our_configs"):
        (here / folder).mkdir(parents=True)
    text = command.text.replace("| source", "| cat")  # fish's own word
    assert typed(text, here).returncode == 0


def typed(text, where, **env):
    """What bash does of a line, with this environment's programs and `where` as home."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {text}"], cwd=where, env=os.environ | {"PATH": path, "HOME": str(where)} | env,
        capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", [pytest.param(one, id=one.where) for one in HERE if one.serves])
def test_a_command_that_serves_answers_until_it_is_stopped(command, here):
    args = [*(word for word in desk.on_desk(command.words[1:]) if not word.startswith(PORT)), "port=0"]
    running = subprocess.Popen(
        [sys.executable, "-m", "peftrun", *args], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said = running.stdout.readline()
        address = re.search(r"http://[\d.]+:\d+", said)
        assert address, said + (running.stderr.read() if running.poll() is not None else "")
        page = "/v1/models" if "action=serve" in command.words else "/"
        with urllib.request.urlopen(address[0] + page, timeout=60) as answer:
            assert answer.status == 200
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
        assert running.returncode == 0, err
    finally:
        running.kill()
        running.wait()


@cases("command", [one for one in documented.distinct(ALL) if one.program == "make"], ids=lambda command: command.where)
def test_a_target_of_the_makefile_is_one_of_those_it_lists(command):
    """CI runs them; here each is only asked what it would do."""
    done = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert done.returncode == 0, done.stderr
    assert f"make {command.words[1]} " in listed


@cases("command", [one for one in documented.distinct(ALL) if one.program == "pip"], ids=lambda command: command.where)
def test_what_pip_installs_is_pinned_or_ours(command):
    """test_wheel.py installs; here packages, versions and extras are compared with what is declared."""
    pins = (ROOT / "constraints.txt").read_text().lower().splitlines()
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for word in command.words[2:]:
        name = re.fullmatch(r"peftrun\[(.+)\]", word)
        if name:
            assert set(name[1].split(",")) <= set(extras), word
        elif "==" in word:
            assert word.lower() in pins, word
        else:
            assert word.startswith("-") or word in (".", "constraints.txt", "our_templates", *bare(pins)), word


def bare(pins):
    return {line.partition("==")[0] for line in pins}


@pytest.mark.slow
@cases(
    "command",
    [one for one in documented.distinct(ALL) if one.program in ("python", "cp")],
    ids=lambda command: command.where,
)
def test_a_command_of_another_program(command, tmp_path, shelf, monkeypatch):
    here = tmp_path
    sit_down(here, shelf, monkeypatch)
    if (
        "-m peftrun.config_tools.json_schema" in command.text
    ):  # writes into the repository: test_schemas.py makes the same and compares
        return
    if command.words[1].endswith(".py"):
        assert (ROOT / command.words[1]).is_file()
        return
    (here / "our_configs").mkdir()
    done = typed(re.sub(r"outputs/train/\d[-_\d]+", "outputs/train/RUN", command.text), here)
    assert done.returncode == 0, done.stderr


def test_the_desk_has_a_stand_in_for_what_nobody_here_has():
    assert desk.on_desk(["model=pretrained", "model.name_or_path=ORG/NAME"])[1] == "model.name_or_path=llama"
