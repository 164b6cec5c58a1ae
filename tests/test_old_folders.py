"""A run folder, a sweep folder and a team package, as version 0.1.0 left them before its modules were put in order: `fixtures/v0_1_0`."""

import shutil
from pathlib import Path

import pytest

OLD = Path(__file__).parent / "fixtures" / "v0_1_0"


@pytest.fixture
def old(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.slow
def test_they_are_replayed_listed_and_checked(old, cli, monkeypatch):
    monkeypatch.chdir(old)
    replayed = cli("action=replay", "run=run")
    assert replayed.code == 0, replayed.out + replayed.err
    assert replayed.record()["replay"]["verdict"] in ("identical", "equal")
    cell = next(path.name for path in (old / "sweep").iterdir() if (path / "record.json").is_file())
    listed = cli("action=list", "roots=[run, sweep]")
    assert listed.code == 0 and "run" in listed.out and cell in listed.out, listed.out + listed.err
    checked = cli("--config-dir", "team", "action=check")
    assert checked.code == 0 and "experiment=parity" in checked.out, checked.out + checked.err
    again = cli("action=reload", "adapter=run", "action.evaluate=false")
    assert again.code == 0, again.err
