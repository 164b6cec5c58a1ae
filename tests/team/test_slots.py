"""What a template asks for: typed, told in one line, and recorded with the template's name and version."""

import pytest
from cases import cases
from conftest import TINY_STEPS
from faults import check_refused
from team_packages import write

from peftrun.composition.spec import build_spec_from_values
from peftrun.config import values as config

TEMPLATE = """
defaults:
  - override /task: instruction
template:
  name: ours/support
  version: 1.2.0
  params:
    rows: {type: path, help: a .jsonl of columns prompt and completion}
    rank: {type: int, help: how large}
    rate: {type: float, help: how fast}
    fast: {type: bool, help: whether}
    words: {type: str, help: a greeting}
params: {rows: '???', rank: 8, rate: 0.1, fast: false, words: Hello}
task: {data: {path: "${params.rows}"}, system_prompt: "${params.words} there"}
lora: {r: "${params.rank}", lora_dropout: "${params.rate}", use_dora: "${params.fast}"}
"""
RUN = ["--config-dir", "team", "experiment=ours_support"]
ROWS = "params.rows=rows.jsonl"


@pytest.fixture
def team(tmp_path, data):
    write(tmp_path / "team", "experiment/ours_support", TEMPLATE)
    (tmp_path / "rows.jsonl").write_bytes(data.read_bytes())
    return tmp_path


@cases("typed, told", [
        ([], ["params.rows is not set: a .jsonl of columns prompt and completion (path); type params.rows=PATH"]),
        (["params.rows=no.jsonl"], ["params.rows=no.jsonl: there is no such file"]),
        ([ROWS, "params.rank=a"], ["params.rank=a: must be an int: how large (int); type params.rank=1"]),
        ([ROWS, "params.rank=1.5"], ["params.rank=1.5: must be an int"]),
        ([ROWS, "params.rate=true"], ["params.rate=true: must be a float"]),
        ([ROWS, "params.fast=1"], ["params.fast=1: must be a bool"]),
        ([ROWS, "params.words=3"], ["params.words=3: must be a str"]),
        ([ROWS, "params.nosuch=3"], ["params.nosuch=3: the template has no such parameter; parameters: params.rows"]),
        ([ROWS, "+params.nosuch=3"], ["params.nosuch=3: is not declared"]),
        ([ROWS, "~params.rank"], ["template.params.rank: has no key to be set by", "lora.r: "]),
        (["lora.rr=1"], ["lora.rr=1: there is no such key", "params.rows is not set"]),
        ([ROWS, "params.rank=0"], ["lora.r=0: must be greater than or equal to 1"]),
    ], every=3)  # fmt: skip
def test_what_is_wrong_with_a_slot_is_one_line(team, cli, monkeypatch, typed, told):
    monkeypatch.chdir(team)
    if "~params.rank" in typed:
        told = told[1:]  # an interpolation that leads nowhere is told first
    check_refused(cli, team, [*RUN, *typed], *[(line,) for line in told])


def test_a_slot_without_a_template_is_refused(tmp_path, cli):
    check_refused(cli, tmp_path, ["+params.x=1"], ("params.x=1: no chosen template has it",))
    check_refused(cli, tmp_path, ["params.x=1"], ("params.x=1: no chosen template has it",))


def test_a_declared_slot_without_a_key_is_told(team, cli):
    write(
        team / "team", "experiment/ours_support", TEMPLATE.replace(" rate: 0.1,", "").replace('"${params.rate}"', "0.1")
    )
    check_refused(
        cli, team, [*RUN, ROWS], ("template.params.rate: has no key to be set by; write `params: {rate: ???}`",)
    )


@pytest.mark.parametrize("change, told", [
        (("  version: 1.2.0\n", ""), ("template.version is not set",)),
        (("version: 1.2.0", "version: 1.2"), ("template.version=1.2: must be a valid string", "type 'template.version=\"1.0.0\"'")),
        (("type: bool", "type: boolean"), ("template.params.fast.type=boolean",)),
        (("help: whether", "hint: whether"), ("template.params.fast",)),
    ])  # fmt: skip
def test_a_template_says_what_it_is(team, cli, change, told):
    write(team / "team", "experiment/ours_support", TEMPLATE.replace(*change))
    outcome = cli(*RUN, ROWS)
    assert outcome.code == 1
    assert all(part in outcome.err for part in told), outcome.err


def test_a_run_says_and_records_its_template(team, cli, llama, on_tiny):
    tiny = [text for text in on_tiny(llama) if not text.startswith(("task=", "task.data.path="))]
    done = cli(*RUN, ROWS, "params.rate=0", *tiny, *TINY_STEPS)
    assert done.code == 0, done.err
    assert "template ours/support 1.2.0" in done.err
    assert done.record()["template"] == {"name": "ours/support", "version": "1.2.0"}
    values = config.read_values(done.run_dir / "config.yaml")
    assert values["template"]["version"] == "1.2.0" and values["params"]["rows"] == "rows.jsonl"
    assert values["task"]["data"]["path"] == "rows.jsonl" and values["task"]["system_prompt"] == "Hello there"
    assert build_spec_from_values(values).template.params["rows"].type == "path"
    assert "params" not in str(done.record()["unused_keys"]) and "template" not in str(done.record()["unused_keys"])


def test_slots_can_be_swept(team, cli):
    shown = cli("-m", *RUN, ROWS, "params.rank=2,4", "action=plan")
    assert shown.code == 0 and "params.rank=2" in shown.out and "params.rank=4" in shown.out, shown.err


def test_help_says_what_a_template_asks_for(team, cli):
    shown = cli("--help", "--config-dir", "team").out
    assert (
        "params.rows=PATH" in shown
        and "params.rank=8" in shown
        and "a .jsonl of columns prompt and completion" in shown
    )
