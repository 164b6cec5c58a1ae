"""Rows under a URL: read as the same file here is, known by their content, downloaded once a version."""

import hashlib
import json
from functools import partial
from http.server import SimpleHTTPRequestHandler
from importlib.util import find_spec

import fsspec
import local_server
import pytest
from cases import cases
from conftest import TINY_STEPS
from faults import check_refused, instead


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.downloads.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    """A web server of the folder `web`, and what was downloaded from it."""
    folder = tmp_path / "web"
    folder.mkdir()
    with local_server.serve(partial(Handler, directory=str(folder))) as server:
        server.downloads, server.folder, server.url = [], folder, local_server.get_address(server)
        yield server


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="fsspec reads https:// with aiohttp, which is not installed")
def test_rows_under_a_url_train_the_same_adapter_and_a_changed_file_is_noticed(cli, on_tiny, llama, data, web, monkeypatch, tmp_path):  # fmt: skip
    monkeypatch.setenv("PEFTRUN_CACHE", str(tmp_path / "cache"))
    lines = data.read_text().splitlines()
    (web.folder / "train.jsonl").write_text("\n".join(lines[:30]))
    fsspec.filesystem("memory").pipe_file("/bucket/test.jsonl", "\n".join(lines[30:]).encode())
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:30]))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[30:]))
    command = [*on_tiny(llama), *TINY_STEPS, "trainer.save_strategy=no"]
    url = f"{web.url}/train.jsonl"
    there = cli(*command, f"task.data.path={url}", "task.data.test_path=memory://bucket/test.jsonl")
    assert there.code == 0, there.err
    here = cli(*command, "task.data.path=train.jsonl", "task.data.test_path=test.jsonl")
    assert here.code == 0, here.err
    weights = "adapter/adapter_model.safetensors"
    assert there.record()["artifacts"][weights] == here.record()["artifacts"][weights]
    digest = hashlib.sha256((tmp_path / "train.jsonl").read_bytes()).hexdigest()
    assert there.record()["input_digests"][f"task.data.path={url}"] == digest
    assert "task.data.test_path=memory://bucket/test.jsonl" in there.record()["input_digests"]
    assert len(web.downloads) == 1, "downloaded once, however often it is read"

    again = cli("action=replay", f"run={there.run_dir}", "check_only=true")
    assert again.code == 0 and len(web.downloads) == 1
    rows = [json.loads(line) for line in lines[:30]]
    (web.folder / "train.jsonl").write_text("\n".join(json.dumps(row | {"completion": "no"}) for row in rows))
    changed = cli("action=replay", f"run={there.run_dir}", "check_only=true")
    assert "rows" in changed.out and changed.out != again.out and len(web.downloads) == 2
    missing = cli(*command, f"task.data.path={web.url}/none.jsonl")
    assert missing.code == 1 and f"task.data.path={web.url}/none.jsonl: cannot be read" in missing.err


@cases(
    "typed, said",
    [
        ("task.data.path=abfs://box/a.jsonl", "task.data.path=abfs://box/a.jsonl: needs package adlfs; type `pip install adlfs`"),
        ("task.data.test_path=oss://box/a.csv", "task.data.test_path=oss://box/a.csv: needs package ossfs; type `pip install ossfs`"),
        ("task.data.path=s4://box/a.jsonl", "task.data.path=s4://box/a.jsonl: fsspec knows no s4://; type s3://"),
        ("task.data.path=https://me:secret@host/a.jsonl", "contains a password"),
        ("task.data.path=memory://box/rows", "does not say the format"),
        ("task.data.mixture={more: {path: 'adl://box/a.jsonl', weight: 1}}", "task.data.mixture.more.path=adl://box/a.jsonl: needs package adlfs"),
        ("task.tools=smb://box/tools.json", "task.tools=smb://box/tools.json: cannot be read here"),
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_read_is_refused_without_asking_the_network(cli, tmp_path, data, typed, said):
    command = instead(["task=instruction", f"task.data.path={data}"], [typed])
    check_refused(cli, tmp_path, command, [said])
