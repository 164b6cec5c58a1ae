"""Killed at any moment, or on a full disk: what is there under an artefact's name is whole, old or new, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build_llama
from faults import snapshot
from merge_cases import FAMILIES, stored_base, trained_adapter

from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

ACTIONS = {"save": ["action=save"], "merge": ["action=merge", "action.num_eval_rows=0"]}
KILLS = [
    pytest.param(50, id="50"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> tuple[Path, Path]:
    """A base in many files, so that a merge has many moments, and an adapter for it."""
    folder = tmp_path_factory.mktemp("sources")
    family = FAMILIES["llama"]
    wide = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6}
    base = stored_base(family, folder, torch.float32, "150KB", build=lambda where: build_llama(where, **wide))
    return base, trained_adapter(family, base, folder, {"r": 16, "target_modules": "all-linear"})


def trials(how: str, where: Path, number: int, action: str, sources: tuple[Path, Path]) -> tuple[dict, list[Path]]:
    """What `crashing` reports, and the folders of the trials."""
    base, adapter = sources
    folders = [where / name for name in ("whole", *map(str, range(number)))]
    for folder in (*folders, where / "counted"):
        (folder / "near").mkdir(parents=True)
        shutil.copytree(adapter, folder / "near" / "old")
    arguments = [
        "model=pretrained", f"model.name_or_path={base}", "device=cpu", "device.dtype=float32", f"adapter={adapter}",
        *ACTIONS[action], "action.output_dir=near/new",
    ]  # fmt: skip
    script = str(Path(__file__).with_name("crashing.py"))
    done = subprocess.run(
        [sys.executable, script, how, str(where), "0", str(number), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folders


def contents(folder: Path) -> dict[str, str]:
    return {str(Path(path).relative_to(folder)): digest for path, digest in snapshot(folder).items()}


def check_whole(folders: list[Path], sources: tuple[Path, Path]) -> None:
    """In every trial's folder, after it was run again: the old artefact, and a new one like the unharmed run's."""
    expected, old = contents(folders[0] / "near" / "new"), contents(sources[1])
    assert len(expected) > 2
    for folder in folders[1:]:
        assert contents(folder / "near" / "new") == expected, folder
        assert contents(folder / "near" / "old") == old, folder
        for record in folder.glob("outputs/**/record.json"):
            assert json.loads(record.read_text())["status"] in ("running", "failed", "completed")


@pytest.mark.slow
@pytest.mark.parametrize("number", KILLS)
@pytest.mark.parametrize("action", ACTIONS)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path, sources, action, number):
    before = contents(sources[0]), contents(sources[1])
    report, folders = trials("kill", tmp_path, number, action, sources)
    assert report["found"].count("during") >= number // 8, report  # it did hit the write
    # Run again, all is there: a trial that had left half an artefact under its name would have been refused.
    check_whole(folders, sources)
    assert (contents(sources[0]), contents(sources[1])) == before


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_a_disk_that_is_full_at_any_place_is_told_and_leaves_nothing_half_written(tmp_path, sources, action):
    report, folders = trials("full", tmp_path, 10, action, sources)
    places = [place for _, _, place in report["found"]]
    assert len(set(places)) == 10 and report["again"] >= 8  # the last places come after the artefact: for the record
    for folder, (code, calls, place) in zip(folders[1:], report["found"], strict=True):
        told = (folder / "first.txt").read_text()
        lines = [line for line in told.splitlines() if line.startswith("peftrun: ")]
        assert code == 1 and calls > place, told
        assert len(lines) == 1 and "No space left on device" in lines[0], told
        assert "Traceback" not in told
    check_whole(folders, sources)


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "record.json"
    atomic_files.write_text(file, "old")
    for step in ("fsync", "replace"):
        with monkeypatch.context() as full:
            full.setattr(
                atomic_files.os, step, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
            with pytest.raises(ArtifactError, match="No space left"):
                atomic_files.write_text(file, "new")
        assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    atomic_files.write_text(file, "new")
    assert file.read_text() == "new"
