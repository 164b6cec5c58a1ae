"""action=template: a package that pip installs, whose experiment is what was typed."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml
from cases import cases
from conftest import SAMPLED_STEPS
from faults import check_failed, check_refused

import peftrun
from peftrun.composition.compose import compose_run
from peftrun.config import values as config

TYPED = [
    "lora=dora", "lora.r=4", "task=instruction", "task.data.path=mine.jsonl", "task.completion_template='{answer}: \"{why}\"'", "trainer=epochs", "seed=3",
    "++lora.rank_pattern={q_proj: 2, v_proj: 3}", "lora.target_modules=[q_proj,v_proj]", "trainer.learning_rate=1e-4", "device.dtype=float32",
    "task.system_prompt=null", "task.prompt_template='a, b: [c] = {question}'",
]  # fmt: skip
ROOT = Path(__file__).parents[2]


def resolved(overrides, where):
    values = config.resolve_values(compose_run(overrides, [str(where)]).cfg)
    return {key: value for key, value in values.items() if key not in ("params", "template")}


@cases(
    "typed",
    [
        TYPED,
        [],
        ["experiment=quick_look", "lora.r=4", "trainer.max_steps=7"],
        ["experiment=dpo", "lora=rslora", "task.objective.beta=0.2"],
        ["task=spanish_sentiment", "model=minilm", "task.data.labels={a: b}", "+task.data.labels.c=d"],
        ["task=instruction", "task.data.source=hub", "task.data.path=org/rows"],
    ],
    every=3,
)
def test_the_experiment_is_what_was_typed(tmp_path, cli, typed):
    (tmp_path / "mine.jsonl").write_text("")
    done = cli("action=template", "path=deep/our_templates", *typed)
    assert done.code == 0, done.err
    assert "pip install -e deep/our_templates" in done.out
    where = tmp_path / "deep" / "our_templates" / "our_templates"
    assert resolved(["experiment=our_templates"], where) == resolved(typed, where)


def test_a_file_of_ones_own_becomes_a_slot(tmp_path, cli):
    (tmp_path / "mine.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text("")
    cli("action=template", "path=our_templates", *TYPED)
    where = tmp_path / "our_templates" / "our_templates"
    assert peftrun.load("experiment=our_templates", config_dirs=[where]).task.data.path == "mine.jsonl"
    spec = peftrun.load("experiment=our_templates", "params.rows=other.jsonl", config_dirs=[where])
    assert spec.task.data.path == "other.jsonl" and spec.template.params["rows"].type == "path"
    assert (spec.template.name, spec.template.version) == ("our_templates/our_templates", "0.1.0")


def test_the_examples_compose(tmp_path, cli):
    (tmp_path / "mine.jsonl").write_text("")
    cli("action=template", "path=our_templates")
    where = [tmp_path / "our_templates" / "our_templates"]
    spec = peftrun.load("experiment=our_templates_rows", "params.rows=mine.jsonl", "params.rank=2", config_dirs=where)
    assert spec.lora.r == 2 and spec.task.data.path == "mine.jsonl" and "q_proj" in spec.lora.target_modules
    assert peftrun.load("lora=our_templates", config_dirs=where).lora.r == 8


def test_every_file_is_in_the_wheel(tmp_path, cli):
    cli("action=template", "path=our_templates")
    text = (tmp_path / "our_templates" / "pyproject.toml").read_text()
    assert '[project.entry-points."peftrun.configs"]\nour_templates = "our_templates"' in text
    assert 'our_templates = ["*/*.yaml", "data/*"]' in text and 'dependencies = ["peftrun>=' in text


@cases("args, told", [
        ([], "action.path is not set; action=template creates a folder: type path=our_templates"),
        (["path=Our-Templates"], "type path=our_templates"),
        (["path=1st"], "type path=our_1st"),
        (["path=class"], "type path=our_class"),
        (["path=a/json"], "json is the name of another package; type path=our_json"),
        (["path=peftrun"], "type path=our_peftrun"),
        (["path=there"], "action.path=there: exists already and is never overwritten"),
        (["path=fine", "lora.rr=3"], "lora.rr=3: there is no such key"),
        (["path=fine", "lora.r=0"], "lora.r=0: must be greater"),
    ], every=3)  # fmt: skip
def test_what_cannot_be_made_is_refused(tmp_path, cli, args, told):
    (tmp_path / "there").mkdir()
    check_refused(cli, tmp_path, ["action=template", *args], (told,))


def test_what_no_file_can_hold_is_refused(tmp_path, cli):
    args = ["action=template", "path=fine", "~task.data.labels.0"]
    check_failed(cli, tmp_path, args, ("~task.data.labels.0: cannot be written to a file",))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Python of an environment of its own; peftrun and its libraries are borrowed from this one by a path file."""
    where = tmp_path_factory.mktemp("environment")
    venv.create(where, with_pip=True)
    site = next((where / "lib").glob("python*/site-packages"))
    python = where / "bin" / "python"
    # An old one that comes with the environment, and cannot make wheels, would be found before the borrowed one.
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"], check=True, timeout=300)
    (site / "borrowed.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n{ROOT}\n")
    return python


def typed_there(python, where, *args):
    command = [python, "-m", "peftrun", *args]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_it_is_installed_used_and_checked(tmp_path, cli, environment, llama, data, on_tiny):
    (tmp_path / "rows.jsonl").write_bytes(data.read_bytes())
    tiny = [text for text in on_tiny(llama) if not text.startswith(("task=", "task.data.path="))]
    made = cli(
        "action=template", "path=our_templates", "task=instruction", "task.data.path=rows.jsonl", *tiny, *SAMPLED_STEPS
    )
    assert made.code == 0, made.err
    pip = [
        environment,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        tmp_path / "our_templates",
    ]
    subprocess.run(pip, check=True, timeout=300)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "theirs.jsonl").write_bytes(data.read_bytes())
    assert "experiment=our_templates_rows" in typed_there(environment, elsewhere, "--help").stdout
    trained = typed_there(environment, elsewhere, "experiment=our_templates", "params.rows=theirs.jsonl")
    assert trained.returncode == 0, trained.stderr
    assert "template our_templates/our_templates 0.1.0" in trained.stderr
    values = yaml.safe_load(next(elsewhere.glob("outputs/train/*/config.yaml")).read_text())
    assert values["template"]["version"] == "0.1.0" and values["task"]["data"]["path"] == "theirs.jsonl"
    checked = typed_there(environment, elsewhere, "action=check")
    assert checked.returncode == 0, checked.stderr
    assert "experiment=our_templates_rows" in checked.stdout
    installed = next(environment.parent.parent.glob("lib/python*/site-packages/our_templates/lora/our_templates.yaml"))
    installed.write_text(installed.read_text().replace("k_proj", "nosuch_proj"))
    broken = typed_there(environment, elsewhere, "action=check")
    assert broken.returncode == 1 and "lora.target_modules=nosuch_proj: matches no module" in broken.stderr, (
        broken.stderr
    )
    assert sys.prefix not in broken.stderr
