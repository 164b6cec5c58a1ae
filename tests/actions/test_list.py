"""Runs are found again: by what they were asked, by what came out, as a table, as JSON; and nothing heavy is imported."""

import json
import os
import pty
import subprocess
import sys

import pytest
from cases import cases
from catalogue_runs import copies
from faults import check_failed, check_refused
from test_startup import HEAVY, PROBE

from peftrun.actions import list as list_action
from peftrun.results.catalog import query


@pytest.fixture
def runs(trained, tmp_path):
    """A dozen, of ranks 8 and 16, whose exact_match climbs from 0 to 0.55; one has failed, one merges."""

    def change(number, record):
        record["metrics"]["after"]["exact_match"] = number / 20
        if number == 3:
            record |= {"status": "failed", "error": "no memory left"}
        if number == 4:
            record["action"] = "merge"
        return {"  r: 8\n": f"  r: {8 if number % 2 else 16}\n"}

    return copies(trained, tmp_path / "outputs", 12, change)


def listed(cli, *args: str) -> list[dict]:
    outcome = cli("action=list", "format=json", *args)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_a_run_is_found_by_what_was_asked_and_what_came_out(cli, runs, tmp_path):
    found = listed(cli, "where=task=instruction and lora.r>=16 and exact_match>0.3", "sort=exact_match")
    assert [one["run"] for one in found] == [str(runs[number].relative_to(tmp_path)) for number in (8, 10)]
    assert [one["metrics.after.exact_match"] for one in found] == [0.4, 0.5] and found[0]["config"]["lora.r"] == 16
    assert [one["status"] for one in listed(cli, "where=status=failed")] == ["failed"]
    assert len(listed(cli, "limit=3")) == 3


def test_what_a_shell_passes_on_needs_no_quotes_of_its_own(cli, runs):
    assert len(listed(cli, "where=task~'instr*' and not (status=\"failed\" or action=merge)")) == 10
    assert len(listed(cli, "action.where='task=instruction'")) == 12  # in quotes for Hydra, as ever


def test_usually_those_are_shown_that_made_something(cli, runs):
    for _ in range(2):
        assert cli("action=list").code == 0
    assert len(listed(cli)) == 12
    assert {one["action"] for one in listed(cli, "where=action=list")} == {"list"}
    assert len(listed(cli, "where=action!=list")) == 12


def test_the_table_is_a_line_a_run_whole_where_another_program_reads(cli, runs):
    outcome = cli("action=list", "where=trainer.max_steps=4 and lora.r=16 and action=train", "sort=-exact_match")
    head, *lines = outcome.out.splitlines()
    assert outcome.code == 0 and len(lines) == 5
    assert head.split()[:4] == ["run", "status", "action", "task"] and head.split()[-1] == "trainer.max_steps"
    assert "lora.r" not in head  # it is the rank, and exact_match the metric
    assert "0.5000" in lines[0] and lines[0].startswith("outputs/train/")
    assert outcome.err.splitlines()[-1] == "5 found below outputs"
    assert outcome.record()["listed"] == {"shown": 5, "matching": 5}


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_is_filled_and_no_more(runs, tmp_path, width):
    """Run in a pseudo-terminal of that width."""
    leader, follower = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "peftrun", "action=list", "limit=4"],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": str(width), "TERM": "dumb"},
        stdout=follower,
        stderr=subprocess.DEVNULL,
    )
    os.close(follower)
    text = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        text += part
    assert done.wait(60) == 0
    os.close(leader)
    lines = text.decode().splitlines()
    assert len(lines) > 5 and max(map(len, lines[:5])) <= width
    assert "exact_match" in lines[0] or width < 80
    assert "next:" in lines
    (reload,) = [line for line in lines if line.startswith("  peftrun action=reload adapter=outputs/train/")]
    assert " model=" not in reload and " task=" not in reload and " hydra" not in reload  # the run's own
    assert any(line.startswith("  peftrun action=compare 'runs=[") for line in lines)


def test_keys_that_it_does_not_read_are_told(cli, runs):
    told = cli("action=list", f"dirs=[{runs[0].parents[1]}]", "seed=9", f"adapter={runs[0]}", "limit=1").err
    assert "seed=9" in told and "adapter.default=" in told and "not used by this run" in told
    assert "not used by this run" not in cli("action=list", f"dirs=[{runs[0].parents[1]}]", "limit=1").err


def test_what_has_not_come_to_its_end_is_not_proposed(runs):
    """Only number 3, which has failed, is newer than another."""
    found = query.query_runs([str(runs[0].parents[1])], "status=failed or seed=0", "status").runs
    failed = next(one for one in found if one.facts["status"] == "failed")
    commands = list_action._suggest_commands(query.SearchResult([failed, *found], query.Columns(found, False), 13, 13))
    assert len(commands) == 3 and not any(failed.facts["run"] in command for command in commands)


def test_a_metric_that_nobody_has_measured_finds_nothing(cli):
    for _ in range(2):  # then there is a run: the first of these
        assert listed(cli, "where=task=sms_spam and lora.r>=8 and macro_f1>0.9", "sort=-macro_f1") == []


def test_what_was_exported_is_found_where_it_is_asked_for(cli, trained, tmp_path):
    copies(
        trained, tmp_path / "outputs", 2, lambda number, record: record.update(action=("train", "export")[number]) or {}
    )
    assert [one["action"] for one in listed(cli)] == ["train"]
    assert [one["action"] for one in listed(cli, "where=action=export")] == ["export"]


def test_a_folder_without_runs_is_told(cli):
    outcome = cli("action=list")
    assert outcome.code == 0 and outcome.out == "" and "none found below outputs" in outcome.err


def test_numbers_that_json_cannot_say_are_null(cli, trained, tmp_path):
    def change(_, record):
        record["metrics"]["after"]["exact_match"] = float("nan")
        return {}

    copies(trained, tmp_path / "outputs", 1, change)
    assert listed(cli)[0]["metrics.after.exact_match"] is None


@cases(
    "args, told",
    [
        (["where=task"], ["action.where: after task one of", "⟨here⟩"]),
        (["where=(task=a"], ["action.where:", "closing parenthesis"]),
        (["dirs=[nowhere]"], ["action.dirs: there is no folder nowhere"]),
        (["limit=0"], ["action.limit=0", "greater than or equal to 1"]),
        (["format=yaml"], ["action.format=yaml", "type action.format="]),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_done(cli, runs, tmp_path, args, told):
    check_refused(cli, tmp_path, ["action=list", *args], told)


@pytest.mark.parametrize(
    "args, told",
    [
        (["where=exact_mtch>0.5"], ["action.where: there is no column exact_mtch; did you mean exact_match?"]),
        (["sort=-ranks"], ["action.sort: there is no column ranks; did you mean rank?"]),
        (["where=rank>many"], ["rank holds numbers"]),
        (["where=status=compleet"], ["action.where: status=compleet: a status is one of", "type status=completed"]),
    ],
)
def test_an_unknown_column_is_one_line(cli, runs, tmp_path, args, told):
    check_failed(cli, tmp_path, ["action=list", *args], told)


@pytest.mark.slow
@pytest.mark.parametrize("args", [["action=list", "where=lora.r>=8"], ["action=compare", "where=exact_match>0.45"]])
def test_nothing_heavy_is_imported(runs, tmp_path, args):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and f"HEAVY {[name for name in HEAVY if name == 'none']}" in done.stderr, done.stderr


def test_a_real_merge_and_a_saved_adapter_are_found(cli, trained, llama, on_tiny, tmp_path):
    assert cli("action=merge", f"adapter={trained}", "verify=false", *on_tiny(llama)).code == 0
    assert cli("action=save", f"adapter={trained}", "output_dir=outputs/mine", *on_tiny(llama)).code == 0
    found = {(one["action"], one["run"].split("/")[1]): one for one in listed(cli)}
    assert found.keys() == {("merge", "merge"), ("save", "save"), (None, "mine")}
    assert (
        found["merge", "merge"]["base"] == "tiny-llama"
        and found["merge", "merge"]["size"] > found[None, "mine"]["size"]
    )
    assert found["merge", "merge"]["of"] == str(trained) and found[None, "mine"]["rank"] == 8
