"""The commands that a run suggests work as they are printed, whatever model, task and adapters it had."""

import html
import shlex

import pytest
from cases import cases
from conftest import TINY_STEPS
from team_packages import write

from peftrun.composition.spec import build_spec


def suggested(outcome) -> list[list[str]]:
    assert outcome.code == 0, outcome.err
    lines = [line.strip() for line in outcome.out.splitlines() if line.strip().startswith("peftrun ")]
    return [shlex.split(line)[1:] for line in lines if "action.prompt=" not in line]


@cases("action", ["save", "merge", "reload", "combine"], every=4)
def test_what_is_suggested_works(cli, trained, llama, on_tiny, action):
    given = f"adapter={{a: {trained}, b: {trained}}}" if action in ("save", "combine") else f"adapter={trained}"
    commands = suggested(cli(*on_tiny(llama), f"action={action}", given))
    assert commands
    for command in commands:
        if "action=generate" in command:
            command.append("action.prompt=hi")
        again = cli(*command, "action.max_new_tokens=2") if "action=generate" in command else cli(*command)
        assert again.code == 0, (command, again.err)


@cases(
    "spread",
    [["device=ddp", "device.num_processes=2"], ["experiment=data_parallel", "device.type=cpu"]],
    ids=lambda given: given[0],
)
def test_what_follows_a_run_of_several_processes_runs_in_one(spread):
    from peftrun.artifacts import run_overrides
    from peftrun.composition import compose

    typed = run_overrides.strip_process_overrides([*spread, "device.dtype=float32", "seed=3"])
    command = shlex.split(run_overrides.add_shared_overrides("peftrun action=evaluate", typed))[1:]
    assert "device.dtype=float32" in command
    spec = build_spec(compose.compose_run(command).cfg)
    assert spec.device.strategy is None and spec.device.num_processes == 1 and spec.device.dtype == "float32"


def test_a_model_or_rows_other_than_those_of_the_adapters_run_are_typed_again(trained, llama, on_tiny):
    from peftrun.artifacts import run_overrides

    own, command = on_tiny(llama), f"peftrun action=merge adapter={trained}"
    shared = shlex.split(run_overrides.add_shared_overrides(command, own))
    assert "device=cpu" in shared and not {"model=pretrained", "task=instruction"} & set(shared)
    for other, unchanged in (("model.name_or_path=copy", "task="), ("task.data.path=other.jsonl", "model=")):
        typed = [text for text in own if not text.startswith(other.partition("=")[0])] + [other]
        shared = shlex.split(run_overrides.add_shared_overrides(command, typed))
        assert other in shared and not any(word.startswith(unchanged) for word in shared), shared


TEAM = """
defaults:
  - override /task: instruction
template: {name: ours/lines, version: 1.0.0, params: {rows: {type: path, help: rows}}}
params: {rows: '???'}
task: {data: {path: "${params.rows}"}}
"""


def test_what_is_suggested_asks_for_the_rows_that_were_learned_on_one_line_each(cli, tmp_path, llama, on_tiny, data):
    """A team's template with a param, and a template of two lines: as printed, each command finds folder, rows and prompt."""
    write(tmp_path / "team", "experiment/ours_lines", TEAM)
    tiny = [text for text in on_tiny(llama) if not text.startswith(("task=", "task.data.path="))]
    asked_for = [f"params.rows={data}", r"task.prompt_template='{prompt}\nAnswer:'"]
    trained = cli("--config-dir", "team", "experiment=ours_lines", *asked_for, *tiny, *TINY_STEPS)
    reload, _merge, _further = suggested(trained)
    reloaded = cli(*reload)
    loss = trained.record()["metrics"]["after"]["loss"]
    assert reloaded.code == 0 and reloaded.record()["metrics"]["loss"] == pytest.approx(loss, rel=1e-3), reloaded.err
    merged = cli(
        "action=merge", f"adapter={trained.run_dir}", "model=pretrained", f"model.name_or_path={llama}", "device=cpu"
    )
    evaluate, _ = suggested(merged)
    measured = cli(*evaluate)
    assert measured.code == 0 and measured.record()["metrics"]["loss"] == pytest.approx(loss, rel=1e-3), measured.err
    page = html.unescape((trained.run_dir / "report.html").read_text())
    assert all(text in page for text in ("params.rows=", "--config-dir", r"{prompt}\nAnswer:"))
