"""Runs side by side: what differs is there, what is the same is not."""

import json

import pytest
from cases import cases
from catalogue_runs import copies
from faults import check_failed, check_refused


@pytest.fixture
def pair(trained, tmp_path):
    def change(number, record):
        record["metrics"]["after"]["loss"] = 1.5 - number
        record["versions"]["torch"] = f"2.{number}"
        return {"learning_rate: 0.01": f"learning_rate: 0.0{number + 1}", "  r: 8\n": f"  r: {8 * (number + 1)}\n"}

    return [str(folder.relative_to(tmp_path)) for folder in copies(trained, tmp_path / "outputs", 2, change)]


def test_what_differs_is_told_and_what_came_out(cli, pair):
    outcome = cli("action=compare", f"runs=[{','.join(pair)}]", "format=json")
    found = json.loads(outcome.out)
    assert outcome.code == 0 and found["runs"] == pair
    assert found["config"] == {"lora.r": [8, 16], "trainer.learning_rate": [0.01, 0.02]}
    assert [after for _, after in found["metrics"]["loss"]] == [1.5, 0.5] and found["metrics"]["loss"][0][0] > 1
    assert found["versions"] == {"torch": ["2.0", "2.1"]} and found["cost"]["size"][0] == found["cost"]["size"][1]
    assert all(command.startswith("peftrun model=pretrained") for command in found["commands"])


def test_the_table_has_a_column_a_run(cli, pair):
    lines = cli("action=compare", f"runs=[{','.join(pair)}]").out.splitlines()
    assert lines[:2] == [f"A  {pair[0]}", f"B  {pair[1]}"]
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert rows["lora.r"] == ["8", "16"] and rows["torch"] == ["2.0", "2.1"] and "trainer.max_steps" not in rows
    assert rows["A"][:2] == ["peftrun", "model=pretrained"]


def test_where_chooses_runs_and_an_adapter_alone_can_stand_beside_one(cli, pair, trained):
    assert json.loads(cli("action=compare", "where=lora.r>=8", "format=json").out)["runs"] == sorted(pair, reverse=True)
    found = json.loads(cli("action=compare", f"runs=[{pair[1]},{trained / 'adapter'}]", "format=json").out)
    assert found["about"]["rank"] == [16, 8] and found["about"]["action"] == ["train", None]
    shown = cli("action=compare", f"runs=[{pair[1]},{trained / 'adapter'}]").out
    assert "the config is not known of B" in shown and "nothing differs" not in shown


def test_runs_that_are_the_same_say_so(cli, trained, tmp_path):
    copies(trained, tmp_path / "outputs", 3)
    outcome = cli("action=compare", "where=seed=0")
    assert (
        outcome.code == 0
        and "nothing differs between their configs" in outcome.out
        and "\nC  outputs/train" in outcome.out
    )


@cases(
    "args, told",
    [
        ([], ["action.runs is not set; action=compare needs two runs or more", "type 'runs=["]),
        (
            ["runs=[outputs/train/RUN]"],
            ["action.runs names only outputs/train/RUN; action=compare needs two runs or more"],
        ),
        (["runs=[a,b]", "where=seed=0"], ["cannot be combined with action.where"]),
    ],
)
def test_fewer_than_two_are_refused_at_once(cli, tmp_path, args, told):
    check_refused(cli, tmp_path, ["action=compare", *args], told)


@pytest.mark.slow
def test_what_turns_out_to_be_no_two_runs_is_one_line(cli, pair, tmp_path):
    check_failed(cli, tmp_path, ["action=compare", f"runs=[{pair[0]},{pair[0]}/]"], ["action.runs: two runs or more"])
    check_failed(
        cli, tmp_path, ["action=compare", f"runs=[{pair[0]},outputs]"], ["action.runs: outputs: is no run folder"]
    )
    check_failed(cli, tmp_path, ["action=compare", "where=lora.r=16"], ["matches only one run, outputs/train/"])
    check_failed(cli, tmp_path, ["action=compare", "where=lora.r=5"], ["matches no run"])


def test_a_torn_record_is_refused(cli, pair, tmp_path):
    (tmp_path / pair[0] / "record.json").write_text('{"status": "comp')
    told = [f"{pair[0]}: its record is unreadable"]
    check_failed(cli, tmp_path, ["action=compare", f"runs=[{pair[0]},{pair[1]}]"], told)
    check_failed(cli, tmp_path, ["action=compare", "where=action!=compare"], told)
