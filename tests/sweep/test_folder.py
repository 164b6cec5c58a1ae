"""Which folder a sweep goes on in, who holds it, and where earlier attempts go."""

import json
import os
import signal
import subprocess
import sys

import pytest
from cases import cases

from peftrun.errors import ArtifactError
from peftrun.sweep import folder


def cell(sweep, name, record=None):
    path = sweep / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("seed: 1\n")
    if record:
        (path / "record.json").write_text(record)
    return path


def test_the_newest_sweep_that_holds_a_cell_is_continued(tmp_path):
    named = tmp_path / "2026-03"
    for name, started in (("2026-01", "2026-01-01"), ("2026-02", "2026-02-01")):
        cell(tmp_path / name, "aaa")
        (tmp_path / name / "sweep.json").write_text(json.dumps({"started": started}))
    cell(tmp_path / "2026-02b", "bbb")
    assert folder.choose_folder(named, True, ["aaa", "ccc"]).name == "2026-02"
    assert folder.choose_folder(named, True, ["bbb"]).name == "2026-02b"
    assert folder.choose_folder(named, True, ["ccc"]) == named
    assert folder.choose_folder(named, False, ["aaa"]) == named
    assert folder.choose_folder(tmp_path / "not" / "there", True, ["aaa"]) == tmp_path / "not" / "there"


def test_only_what_hydra_has_just_made_is_taken_away(tmp_path):
    new = tmp_path / "outputs" / "sweeps" / "new"
    cell(new, "aaa")
    (new / "multirun.yaml").write_text("")
    folder.remove_new_folder(new)
    assert (new / "multirun.yaml").is_file()
    other = tmp_path / "outputs" / "sweeps" / "other"
    other.mkdir()
    (other / "multirun.yaml").write_text("")
    folder.remove_new_folder(other)
    assert not other.exists() and new.is_dir()


def test_the_folder_that_one_is_in_is_not_taken_away(tmp_path, monkeypatch):
    (tmp_path / "here" / "s").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    folder.remove_new_folder(tmp_path / "here" / "s")
    assert (tmp_path / "here").is_dir() and not (tmp_path / "here" / "s").exists()


@cases(
    "record, status",
    [
        (None, "waiting"),
        ('{"status": "completed"}', "completed"),
        ('{"status": "running"}', "running"),
        ('{"sta', "failed"),
    ],
)
def test_status_is_what_the_record_says(tmp_path, record, status):
    assert folder.read_status(cell(tmp_path, "aaa", record)) == status


def test_attempts_are_set_aside_whole_and_counted(tmp_path):
    for number in range(12):
        one = tmp_path / "aaa"
        if not number:
            cell(tmp_path, "aaa")
        (one / "record.json").write_text(json.dumps({"status": "failed", "n": number}))
        folder.set_aside(one)
        assert [path.name for path in one.iterdir()] == ["config.yaml"]
    found = folder.list_attempts(tmp_path / "aaa")
    assert [json.loads((path / "record.json").read_text())["n"] for path in found] == list(range(12))
    assert (found[0] / "config.yaml").read_text() == "seed: 1\n"


def test_what_was_frozen_stays(tmp_path):
    folder.freeze_config(tmp_path / "aaa", lambda: "seed: 1\n")
    folder.freeze_config(tmp_path / "aaa", lambda: "seed: 2\n")
    assert (tmp_path / "aaa" / "config.yaml").read_text() == "seed: 1\n"


HOLD = "import sys, time; from pathlib import Path; from peftrun.sweep import folder\nwith folder.lock_folder(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(60)"


def test_one_process_at_a_time_and_a_killed_one_is_not_waited_for(tmp_path):
    held = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
    try:
        assert held.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match=r"another process runs this sweep"), folder.lock_folder(tmp_path / "s"):
            pass
    finally:
        os.kill(held.pid, signal.SIGKILL)
        held.wait()
    with folder.lock_folder(tmp_path / "s"):
        pass
