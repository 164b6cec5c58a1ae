"""The index says what the records say, whatever happens to the files, to it, or to the folder it lies in."""

import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from cases import cases
from catalogue_runs import copies
from faults import snapshot

from peftrun.artifacts.run_layout import RECORD
from peftrun.results.catalog import index, query


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, and a cache of its own."""
    monkeypatch.setenv("PEFTRUN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def some(here, trained):
    return copies(trained, here / "outputs", 12)


def names(**options) -> set[str]:
    return {run.facts["run"] for run in query.query_runs(["outputs"], **options).runs}


def stored() -> int:
    with closing(sqlite3.connect(index.get_index_path())) as base:
        return base.execute("SELECT count(*) FROM runs").fetchone()[0]


def alter(folder: Path, **values) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | values))


def test_a_real_run_is_described(trained, here):
    (run,) = index.load_runs([str(trained)])
    record = json.loads((trained / RECORD).read_text())
    facts = run.facts
    assert (facts["action"], facts["status"], facts["task"], facts["kind"]) == (
        "train",
        "completed",
        "instruction",
        "causal_lm",
    )
    assert (facts["method"], facts["rank"], facts["base"], facts["seed"], facts["steps"]) == (
        "lora",
        8,
        "tiny-llama",
        0,
        4,
    )
    assert facts["fingerprint"] == record["base"]["fingerprint"]["weights"][:12]
    assert facts["size"] == (trained / "adapter/adapter_model.safetensors").stat().st_size
    assert facts["metric"] == "exact_match" and facts["after"] == record["metrics"]["after"]["exact_match"]
    assert (
        facts["metrics.before.loss"] == record["metrics"]["before"]["loss"]
        and facts["objective"] == record["objective"]
    )
    assert Path(facts["adapter"]) == trained / "adapter" and facts["command"].startswith("peftrun model=pretrained ")
    assert index.load_runs([str(trained)], with_config=True)[0].config["trainer.max_steps"] == 4


def test_a_known_run_is_not_opened_again(some):
    before = names()
    at = some[0] / RECORD
    info, text = at.stat(), at.read_text()
    at.write_text("x" * len(text))  # as large and as old: whoever opens it finds rubbish
    os.utime(at, ns=(info.st_atime_ns, info.st_mtime_ns))
    found = index.load_runs(["outputs"])
    assert {run.facts["run"] for run in found} == before and all(run.facts["status"] == "completed" for run in found)
    os.utime(at)
    assert sum(run.facts["status"] == "unreadable" for run in index.load_runs(["outputs"])) == 1


def test_what_changes_is_seen_and_what_is_gone_disappears(some, trained, here):
    assert len(names()) == stored() == 12
    alter(some[3], seed=77)
    shutil.rmtree(some[4])
    copies(trained, here / "outputs" / "more", 1)
    assert names(text="seed=77") == {str(some[3].relative_to(here))}
    assert len(names()) == stored() == 12 and str(some[4].relative_to(here)) not in names()
    shutil.rmtree(some[5] / "adapter")
    assert names(text="size=null") == {str(some[5].relative_to(here))}


def test_roots_share_the_index_and_keep_apart(some, trained, here):
    copies(trained, here / "outputs2", 2)
    assert len(index.load_runs(["outputs"])) == 12 and len(index.load_runs(["outputs2"])) == 2
    assert stored() == 14
    assert len(index.load_runs(["outputs", "outputs2", "outputs/train"])) == 14
    shutil.rmtree(here / "outputs2")
    assert index.load_runs(["outputs2"]) == [] and stored() == 12


def test_nothing_is_written_where_it_looks(some, here):
    before = snapshot(here)
    query.query_runs(["outputs"], with_config=True)
    query.query_runs(["outputs"], "lora.r=8", "-exact_match")
    assert snapshot(here) == before


def spoil(kind: str) -> None:
    file = index.get_index_path()
    if kind == "noise":
        file.write_bytes(os.urandom(5000))
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "page":
        whole = bytearray(file.read_bytes())
        whole[4096:] = os.urandom(len(whole) - 4096)
        file.write_bytes(whole)
    else:
        with closing(sqlite3.connect(file)) as base, base:
            if kind == "version":
                base.execute("PRAGMA user_version = 9999")
            elif kind == "older":
                base.execute("PRAGMA user_version = 0")
                base.execute("ALTER TABLE runs DROP COLUMN config")
            elif kind == "no table":
                base.execute("DROP TABLE runs")
            elif kind == "column":
                base.execute("ALTER TABLE runs RENAME COLUMN facts TO others")


@cases("kind", ["noise", "empty", "cut", "page", "version", "older", "no table", "column"])
def test_an_index_that_cannot_be_used_is_made_anew(some, kind):
    before = names()
    spoil(kind)
    assert names() == before
    assert names() == before and stored() == 12


def test_a_folder_that_cannot_hold_the_index_is_done_without(some, here, tmp_path, monkeypatch):
    before = names()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "below", Path("/proc/nowhere")):
        monkeypatch.setenv("PEFTRUN_CACHE", str(place))
        assert names() == before == names(text="lora.r=8")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_index_that_may_only_be_read_serves(some, here):
    before = names()
    index.get_index_path().chmod(0o400)
    index.get_index_path().parent.chmod(0o500)
    try:
        alter(some[0], seed=5)
        assert names() == before and len(names(text="seed=5")) == 1
    finally:
        index.get_index_path().parent.chmod(0o700)


def test_an_index_that_another_process_holds_is_waited_for_and_done_without(some, monkeypatch):
    before = names()
    monkeypatch.setattr(index, "LOCK_TIMEOUT", 0.1)
    with closing(sqlite3.connect(index.get_index_path())) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert names() == before
    assert index.get_index_path().is_file() and stored() == 12


def test_several_processes_make_the_index_at_once(some, here):
    code = "from peftrun.results.catalog import index; print(len(index.load_runs(['outputs'])))"

    def process(_: int) -> str:
        return subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(process, range(6))} == {"12\n"}
    assert stored() == 12


def test_folders_are_looked_through_sensibly(trained, here):
    """Links in a circle, what lies in a run, checkpoints, hidden folders and attempts of a sweep; adapters saved elsewhere."""
    (one,) = copies(trained, here / "outputs", 1)
    shutil.copytree(one, one / "again")
    shutil.copytree(one, here / "outputs/.hidden")
    sweep = here / "outputs/sweeps/s"
    for name in ("cell", "attempts/cell-1"):
        shutil.copytree(one, sweep / name)
    (sweep / "sweep.json").write_text(
        json.dumps({"cells": [{"id": "cell", "values": {"task": "ner"}, "command": "peftrun task=ner"}]})
    )
    (sweep / "multirun.yaml").write_text("hydra:\n  runtime:\n    choices:\n      task: sms_spam\n      lora: dora\n")
    shutil.rmtree(sweep / "cell/.hydra")
    shutil.copytree(trained / "adapter", here / "outputs/saved/mine")
    shutil.copytree(trained / "adapter", here / "outputs/saved/mine.rejected")
    (here / "outputs/up").symlink_to(here / "outputs")
    (here / "outputs/loop").symlink_to("loop")
    found = {run.facts["run"]: run.facts for run in index.load_runs(["outputs"])}
    assert found.keys() == {
        str(one.relative_to(here)),
        "outputs/sweeps/s/cell",
        "outputs/saved/mine",
        "outputs/saved/mine.rejected",
    }
    cell = found["outputs/sweeps/s/cell"]
    assert (cell["sweep"], cell["task"], cell["method"], cell["command"]) == (
        "outputs/sweeps/s",
        "ner",
        "dora",
        "peftrun task=ner",
    )
    saved = found["outputs/saved/mine"]
    assert (saved.get("action"), saved["method"], saved["rank"], saved["base"], saved["status"]) == (
        None,
        "lora",
        8,
        "tiny-llama",
        "completed",
    )
    assert found["outputs/saved/mine.rejected"]["status"] == "rejected"


@pytest.mark.parametrize(
    "file, inside",
    [
        ("outputs/mlflow/mlflow.db", f"artifacts/{'0a' * 16}/artifacts"),
        ("outputs/trackio/peftrun.db", "artifacts/peftrun/run-1"),
    ],
)
def test_what_a_tracker_has_copied_is_no_run_of_its_own(trained, here, file, inside):
    (one,) = copies(trained, here / "outputs", 1)
    (here / file).parent.mkdir(parents=True)
    (here / file).touch()
    shutil.copytree(one, (here / file).parent / inside)
    shutil.copytree(one, here / f"outputs/mlruns/1/{'b1' * 16}/artifacts")  # of a server
    assert [run.facts["run"] for run in index.load_runs(["outputs"])] == [str(one.relative_to(here))]


def test_a_base_has_one_name_before_and_after_it_is_loaded(some, trained):
    for package, name in ((None, "org/base"), ("weights_of_someone", "model")):
        config = (some[0] / "config.yaml").read_text()
        values = yaml.safe_load(config)
        values["model"] |= {"package": package, "name_or_path": name}
        (some[0] / "config.yaml").write_text(yaml.safe_dump(values))
        record = json.loads((trained / RECORD).read_text())
        (some[0] / RECORD).write_text(json.dumps({key: value for key, value in record.items() if key != "base"}))
        assert index.load_run(str(some[0])).facts["base"] == (f"{package}:{name}" if package else name)


def test_what_is_typed_again_says_not_where_the_old_run_was_put(some):
    typed = [
        "peftrun",
        "task=sms_spam",
        "hydra.run.dir=outputs/train/q1",
        "hydra.searchpath=[file://ours]",
        "hydra/launcher=local",
    ]
    alter(some[0], command=typed)
    assert index.load_run(str(some[0])).facts["command"] == "peftrun task=sms_spam 'hydra.searchpath=[file://ours]'"


def test_a_folder_without_hydras_notes_has_the_task_that_was_typed(some):
    shutil.rmtree(some[0] / ".hydra", ignore_errors=True)
    alter(some[0], command=["peftrun", "task=chat", "lora=dora", "lora.r=2"])
    facts = index.load_run(str(some[0])).facts
    assert (facts["task"], facts["method"]) == ("chat", "dora")


def test_a_linked_folder_is_looked_through(trained, here, tmp_path):
    copies(trained, tmp_path / "disk", 2)
    (here / "outputs").mkdir()
    (here / "outputs/train").symlink_to(tmp_path / "disk/train")
    assert len(names()) == 2 and all(one.startswith("outputs/train/") for one in names())


@cases("changes, status", [
        ({"pid": os.getpid()}, "running"),
        ({"pid": os.getpid(), "host": platform.node()}, "running"),
        ({"pid": 2**22 + 5}, "dead"),
        ({"pid": None}, "dead"),
        ({"pid": 2**22 + 5, "host": "another-machine"}, "running"),
        ({"pid": os.getpid(), "started": "2020-01-01T00:00:00+00:00"}, "dead"),  # its number is another process's now
    ])  # fmt: skip
def test_a_run_that_goes_on_is_told_from_one_that_was_killed(some, changes, status):
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    alter(some[0], **{"status": "running", "started": now, "host": None} | changes)
    (run,) = [run for run in index.load_runs(["outputs"]) if run.folder == str(some[0])]
    assert run.facts["status"] == status and run.facts["steps"] == 30  # as many as were logged


@cases(
    "text",
    ["", "{", "[]", "null", '{"metrics": 3}', '{"versions": []}', '{"artifacts": 5}', '{"base": {"fingerprint": 3}}'],
)
def test_a_torn_record_is_shown_as_such_and_hides_nothing_else(some, text):
    (some[0] / RECORD).write_text(text)
    statuses = [run.facts["status"] for run in index.load_runs(["outputs"])]
    assert statuses.count("completed") == 11 and len(statuses) == 12


def test_a_torn_config_leaves_the_record(some):
    (some[0] / "config.yaml").write_text("lora: [")
    (run,) = [run for run in index.load_runs(["outputs"], with_config=True) if run.folder == str(some[0])]
    assert run.config == {} and run.facts["status"] == "completed" and run.facts["rank"] is None
