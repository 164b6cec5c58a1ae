"""action=explain: where each value comes from, the command that gives it, and how two runs differ; nothing heavy is imported."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
from cases import cases
from conftest import cli_here
from faults import check_failed, check_refused
from test_startup import run as in_a_process

import peftrun
from peftrun.composition import compose
from peftrun.config import values as config
from peftrun.config_tools import minimal_overrides


def composed(command, search_path=()):
    """What a printed command composes."""
    return config.resolve_values(compose.compose_run(shlex.split(command)[1:], search_path).cfg)


def columns(outcome):
    """Key → value and source, of the printed table."""
    rows = [
        line.split(maxsplit=2) for line in outcome.out.splitlines() if line.startswith("  ") and len(line.split()) > 2
    ]
    return {row[0]: tuple(row[1:]) for row in rows}


def as_json(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_each_key_has_a_row_with_its_source_and_the_command_comes_last(cli):
    run = cli("action=explain", "lora=dora", "lora.r=4", "trainer.max_steps=7", "trainer.warmup_steps=1")
    assert run.code == 0, run.err
    rows = columns(run)
    assert rows["lora.r"] == ("4", "typed: lora.r=4")
    assert rows["lora.use_dora"][0] == "true" and rows["lora.use_dora"][1].startswith("lora/dora.yaml:")
    assert rows["trainer.optim"][1].startswith("trainer/default.yaml:") and rows["seed"][1].startswith("config.yaml:")
    assert rows.keys() >= config.flatten_keys(dataclasses.asdict(peftrun.load())).keys() - {
        "task.data.labels",
        "task.prompt_template",
    }
    assert "lora=dora (typed)" in run.out and "task=sms_spam (default)" in run.out
    assert run.out.endswith("\ncommand:\n  peftrun lora=dora lora.r=4 trainer.warmup_steps=1 trainer.max_steps=7\n")
    own = [
        "task=instruction",
        "task.data.source=hub",
        "task.data.path=ORG/ROWS",
        "task.prompt_template='Q {q}'",
        "task.completion_template='A {a}'",
    ]
    assert (
        " task=instruction " in cli("action=explain", *own).out.rpartition("command:")[2]
    )  # task=plain_text would be as long


@pytest.mark.slow
def test_standard_output_is_json_alone_where_it_was_asked_for(cli):
    run = cli("action=explain", "format=json", "experiment=ner", "seed=4")
    found = as_json(run)
    rows = {row["key"]: row for row in found["keys"]}
    assert {key: row["value"] for key, row in rows.items()} == config.flatten_keys(
        composed("peftrun experiment=ner seed=4")
    )
    source = {key: rows["lora.r"][key] for key in ("value", "kind", "interpolated")}
    assert source == {"value": 16, "kind": "file", "interpolated": False}
    assert Path(rows["lora.r"]["file"]).read_text().splitlines()[rows["lora.r"]["line"] - 1].strip() == "r: 16"
    assert {"group": "model", "option": "minilm", "by": "by experiment=ner"} in found["choices"]
    assert found["command"] == "peftrun experiment=ner seed=4"
    assert run.record()["explained"] == found


@pytest.mark.slow
@cases("of", [["for_action=merge", "adapter=TRAINED"], ["action.for_action=generate"]], ids=lambda given: given[0])
def test_the_config_of_another_action(cli, trained, of):
    found = as_json(cli("action=explain", "format=json", *(text.replace("TRAINED", str(trained)) for text in of)))
    name = of[0].partition("=")[2]
    assert found["keys"][0]["value"] == name and found["command"].startswith(f"peftrun action={name}")
    assert not [row for row in found["keys"] if row["key"] in ("action.for_action", "action.format")]


def test_what_is_explained_is_not_run(cli):
    """Two processes are asked for, and a base that waits in another place: neither is started."""
    for device in ("experiment=data_parallel", "device=offload"):
        run = cli("action=explain", "format=json", device)
        assert as_json(run)["command"] == f"peftrun {device}"


@pytest.fixture
def team(tmp_path):
    folder = tmp_path / "team"
    (folder / "lora").mkdir(parents=True)
    (folder / "lora" / "ours.yaml").write_text(
        "# Ours.\n# peftrun lora=ours\ndefaults:\n  - lora\n  - _self_\n\nr: 3\nlora_alpha: 77\nlora_dropout: 0.25\n"
    )
    return folder


@pytest.mark.slow
def test_a_teams_options_are_found_and_are_part_of_the_command(cli, team):
    for given in (["--config-dir", str(team)], [f"hydra.searchpath=[file://{team}]"]):
        found = as_json(cli(*given, "action=explain", "format=json", "lora=ours"))
        row = next(row for row in found["keys"] if row["key"] == "lora.r")
        assert row["from"] == f"lora/ours.yaml:7 in {team}" and row["file"] == str(team / "lora/ours.yaml")
        assert found["command"] == f"peftrun --config-dir {team} lora=ours"
    plain = as_json(cli("--config-dir", str(team), "action=explain", "format=json", "lora.r=4"))
    assert plain["command"] == "peftrun lora.r=4"


@pytest.mark.slow
def test_a_run_folder_is_explained_with_what_nothing_read_and_its_command(cli, trained):
    found = as_json(cli("action=explain", f"run={trained}", "format=json"))
    saved = config.read_values(trained / "config.yaml")
    assert minimal_overrides.is_same_value(composed(found["command"]), saved)
    assert {row["key"]: row["value"] for row in found["keys"]} == config.flatten_keys(saved)
    record = json.loads((trained / "record.json").read_text())
    assert found["unused_keys"] == record["unused_keys"] and "device.main_process_port" in found["unused_keys"]
    assert {row["kind"] for row in found["keys"]} == {"file", "typed"}
    text = cli("action=explain", f"run={trained}").out
    assert "keys that the run did not use:\n" in text and "  device.main_process_port=29500\n" in text


@pytest.mark.slow
def test_options_that_have_changed_since_are_told(cli, team):
    run = cli("--config-dir", str(team), "action=explain", "lora=ours")
    assert run.code == 0, run.err
    (team / "lora" / "ours.yaml").write_text((team / "lora" / "ours.yaml").read_text().replace("r: 3", "r: 5"))
    found = as_json(cli("action=explain", f"run={run.run_dir}", "format=json"))
    rows = {row["key"]: row for row in found["keys"]}
    assert rows["lora.r"]["value"] == 3
    assert rows["lora.r"]["from"] == f"recorded in config.yaml; today lora/ours.yaml:7 in {team} makes it 5"
    assert rows["lora.lora_alpha"]["from"] == f"lora/ours.yaml:8 in {team}"
    assert minimal_overrides.is_same_value(composed(found["command"].replace(f"--config-dir {team} ", ""), [str(team)]), config.read_values(run.run_dir / "config.yaml"))  # fmt: skip
    shutil.rmtree(team)
    gone = as_json(cli("action=explain", f"run={run.run_dir}", "format=json"))
    assert {row["from"] for row in gone["keys"]} == {"recorded in config.yaml"}
    assert minimal_overrides.is_same_value(composed(gone["command"]), config.read_values(run.run_dir / "config.yaml"))


@pytest.mark.slow
def test_a_folder_that_only_holds_a_config_as_cells_do(cli, tmp_path):
    spec = peftrun.load("lora=adalora", "trainer.learning_rate=1e-05")
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "config.yaml").write_text(config.to_yaml(spec))
    found = as_json(cli("action=explain", "run=cell", "format=json"))
    assert found["command"] == "peftrun lora=adalora trainer.learning_rate=1e-05" and found["unused_keys"] == []


@pytest.fixture
def two(cli, tmp_path):
    def folder(name, *overrides):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(config.to_yaml(peftrun.load(*overrides)))
        return name

    return folder


@pytest.mark.slow
def test_the_overrides_that_lead_from_one_run_to_another(cli, two):
    one, other = two("one", "lora=dora", "lora.r=4"), two("other", "lora=dora", "lora.r=8", "seed=1", "trainer=smoke")
    found = as_json(cli("action=explain", f"run={one}", f"compare_with={other}", "format=json"))
    rows = {row["key"]: (row["from"], row["to"]) for row in found["differences"]}
    assert rows["lora.r"] == (4, 8) and rows["seed"] == (0, 1)
    assert found["overrides"] == ["trainer=smoke", "lora.r=8", "seed=1"]
    assert found["command"] == "peftrun lora=dora trainer=smoke seed=1"
    start = ["lora=dora", "lora.r=4"]
    assert minimal_overrides.is_same_value(
        composed(shlex.join(["peftrun", *start, *found["overrides"]])), composed(found["command"])
    )
    text = cli("action=explain", f"run={one}", f"compare_with={other}").out
    assert "4 → 8" in text and "overrides:\n  trainer=smoke lora.r=8 seed=1\n" in text


@pytest.mark.slow
def test_where_it_was_written_and_what_it_continues_does_not_count(cli, two, trained):
    one, other = two("one", "lora.r=4"), two("other", "lora.r=4", f"action.resume={trained}")
    run = cli("action=explain", f"run={one}", f"compare_with={other}")
    assert run.out == "nothing differs: both runs have the same config\n\ncommand:\n  peftrun lora.r=4\n"
    found = as_json(cli("action=explain", f"run={one}", f"compare_with={other}", "format=json"))
    assert found["differences"] == found["overrides"] == []


REFUSED = [
    (["run=nowhere"], "action.run=nowhere", "is not a run folder"),
    (["compare_with=nowhere"], "action.compare_with=nowhere", "is not a run folder"),
    (["for_action=nosuch"], "action.for_action=nosuch", "is not an action"),
]


@cases("given, key, rule", REFUSED)
def test_what_cannot_be_explained_is_refused(cli, tmp_path, given, key, rule):
    problems = [(key, rule), *([("action.run is not set",)] if key.startswith("action.compare_with") else [])]
    check_refused(cli, tmp_path, ["action=explain", *given], *problems)


def test_a_run_has_its_own_config(cli, tmp_path, two):
    two("one", "lora.r=4")
    asked = ["lora.r=8", "action.for_action=merge"]
    check_failed(cli, tmp_path, ["action=explain", "run=one", *asked], *((text, "would ignore this") for text in asked))


@pytest.mark.slow
def test_nothing_heavy_is_imported(tmp_path, trained):
    for given in (["lora=dora", "format=json"], [f"run={trained}"], [f"run={trained}", f"compare_with={trained}"]):
        done = in_a_process(tmp_path, "action=explain", *given)
        assert done.returncode == 0 and "HEAVY []" in done.stderr, done.stderr


def test_from_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = peftrun.run("action=explain", "lora.r=4")
    assert result.facts["explained"]["command"] == "peftrun lora.r=4" and "typed: lora.r=4" in capsys.readouterr().out


@pytest.mark.slow
def test_whoever_reads_may_stop_early(tmp_path):
    import sys
    from subprocess import PIPE, Popen

    for typed in (["action=explain"], ["--help"], ["--hydra-help"]):
        with Popen(
            [sys.executable, "-m", "peftrun", *typed], cwd=tmp_path, stdout=PIPE, stderr=PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            told = process.stderr.read()
            assert not {"Traceback", "peftrun: ", "Broken"} & set(told.replace(":", ": ").split()), told
        assert process.returncode == 0
    assert cli_here(tmp_path, "action=explain", "seed=1").code == 0
