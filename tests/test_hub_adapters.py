"""Adapters on the Hub, and the base model and the task that an adapter names itself: on a Hub of this machine."""

import json
import shutil
from pathlib import Path

import pytest
from cases import cases
from conftest import cli_here
from hub_repos import serving
from huggingface_hub import constants

import peftrun

BASE = "me/tiny"
FILES = ["adapter_config.json", "adapter_model.safetensors", "peftrun.json", "tokenizer.json"]
ON_CPU = ["device=cpu", "device.dtype=float32"]


def rewritten(folder: Path, **changes) -> Path:
    """The adapter's folder, as if made on this base model: `base`, `task` and `metadata=None` change its peftrun.json."""
    config, metadata = folder / "adapter_config.json", folder / "peftrun.json"
    base = changes.get("base", BASE)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))
    facts = json.loads(metadata.read_text())
    facts["base"]["name"] = base
    facts["task"] = {**facts["task"], **(changes.get("task") or {})} if changes.get("task", {}) is not None else None
    metadata.unlink() if changes.get("metadata", "") is None else metadata.write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory, llama, trained):
    """me/tiny, a base model; me/even, an adapter on it, of which `v1` is an earlier commit and `both/one` a subfolder."""
    where = tmp_path_factory.mktemp("hub")
    adapter = rewritten(shutil.copytree(trained / "adapter", where / "adapter"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(llama / name, adapter / name)
    (adapter / "optimizer.bin").write_bytes(b"not an adapter's")
    (adapter / "README.md").write_text("card")
    with serving(where / "cache") as hub:
        hub.commit(BASE, llama)
        files = {str(file.relative_to(adapter)): file.read_bytes() for file in adapter.iterdir()}
        hub.v1 = hub.commit("me/even", files | {"README.md": b"first"}, "v1", "refs/pr/1")
        hub.latest = hub.commit("me/even", files)
        hub.commit("me/both", {f"{name}/{path}": content for name in ("one", "two") for path, content in files.items()})
        hub.commit("me/pickle", {"adapter_config.json": b"{}", "adapter_model.bin": b""})
        hub.commit("me/notes", {"README.md": b""})
        hub.refused |= {"me/gated": (403, "GatedRepo"), "me/private": (401, "RepoNotFound"), "me/off": (403, "")}
        yield hub


def test_an_adapter_on_the_hub_brings_its_base_and_its_task_and_is_pinned(hub, cli, tmp_path, data):
    shutil.copyfile(data, data.name)
    hub.asked.clear()
    outcome = cli("action=reload", "adapter=me/even", *ON_CPU)
    assert outcome.code == 0, outcome.err
    record = outcome.record()
    assert record["hub_adapters"] == {"default": {"id": "me/even", "revision": "main", "commit": hub.latest}}
    assert record["base"]["name"] == BASE and record["metrics"]["loss"] > 0
    assert set(FILES) <= {*hub.downloaded()} and not {"README.md", "optimizer.bin"} & {*hub.downloaded()}
    assert "peftrun action=merge adapter=me/even device=cpu" in outcome.out
    before, hub.asked[:] = hub.refs["me/even"]["main"], []
    try:
        hub.commit("me/even", {"README.md": b"all gone"})
        again = cli("action=replay", f"run={outcome.run_dir}")
    finally:
        hub.refs["me/even"]["main"] = before
    assert again.code == 0 and "identical" in again.out, again.err
    assert not any("me/even" in text for text in hub.asked), "the commit is here"
    older = cli("action=inspect", "adapter={a: me/even@v1, b: me/both/two@main, one: me/both}")
    assert older.code == 0, older.err
    assert {name: facts["commit"] for name, facts in older.record()["hub_adapters"].items()}["a"] == hub.v1
    assert older.record()["hub_adapters"]["b"]["id"] == "me/both/two"


def test_nothing_is_asked_before_all_else_is_right(hub, cli, monkeypatch):
    hub.asked.clear()
    refused = cli("action=reload", "adapter=me/even", "trainer.learning_rate=-1", "model.name_or_path=./nowhere")
    lines = [line for line in refused.err.splitlines() if line.startswith("peftrun: ")]
    assert refused.code == 1 and len(lines) == 2, refused.err
    for words in (["--cfg", "job"], ["--help"], ["lora.rr=3"]):
        cli("action=evaluate", "adapter=me/even", *words)
    planned = cli("-m", "action=plan", "adapter=me/never", "seed=1,2")
    assert "adapter=me/never: is not downloaded yet" in planned.err and planned.code == 0, planned.err
    assert hub.asked == []
    Path("me/even").mkdir(parents=True)
    assert "adapter=me/even: the folder is empty" in cli("action=inspect", "adapter=me/even").err
    assert "adapter=me/other: is not a folder" in cli("action=inspect", "adapter=me/other").err
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cli("action=inspect", "adapter=me/both/one@main").code == 0, "downloaded before"


@cases(
    "typed, told",
    [
        ("me/missing", ["adapter=me/missing: is no folder here", "check the name, or type `hf auth login`"]),
        ("me/private", ["adapter=me/private: ", "or a private one", "`hf auth login`"]),
        ("me/gated", ["adapter=me/gated: is gated on the Hub; accept its conditions", "`hf auth login`"]),
        ("me/off", ["adapter=me/off: the Hub refused it (403 Forbidden", "`hf auth login`"]),
        ("me/even@v9", ["adapter=me/even@v9: the Hub has no revision v9 of me/even; name a branch, a tag or a commit"]),
        (BASE, [f"adapter={BASE}: is a full model", f"type model=pretrained model.name_or_path={BASE}"]),
        ("me/pickle", ["adapter=me/pickle: adapter_model.bin is a pickle", "save the adapter again"]),
        ("me/notes", ["adapter=me/notes: holds no adapter_config.json"]),
        ("me/both", ["adapter=me/both: its adapters are in subfolders (one, two); type adapter=me/both/one"]),
        ("me/both/three", ["adapter=me/both/three: its adapters are in subfolders (one, two); type adapter=me/both/one"]),
        ("nowhere", ["adapter=nowhere: is not a folder; name a run folder", "ORG/NAME@REVISION on the Hub"]),
        ("offline", ["adapter=me/new: is not in the local cache", "`hf download me/new --local-dir FOLDER`", "type adapter=FOLDER"]),
        ("unreachable", ["adapter=me/new: is not in the local cache", "the Hub cannot be reached; connect"]),
    ],
    ids=lambda case: case[0],
)  # fmt: skip
def test_what_the_hub_does_not_give_is_one_line(hub, cli, monkeypatch, typed, told):
    if typed == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if typed == "unreachable":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("urllib.request.getproxies", dict)
    typed = "me/new" if typed in ("offline", "unreachable") else typed
    outcome = cli("action=inspect", f"adapter={typed}")
    lines = [line for line in outcome.err.splitlines() if line.startswith("peftrun: ")]
    assert outcome.code == 1 and len(lines) == 1 and "Traceback" not in outcome.err, outcome.err
    assert all(text in lines[0] for text in told) and outcome.run_dir is None, lines


@cases(
    "changes, typed, told",
    [
        ({}, [], None),
        ({"base": "llama"}, [], ["adapter=copy: was made for the base model llama, which is not here", "type model=pretrained"]),
        ({"base": "/gone/llama", "metadata": None}, ["action.evaluate=false"], ["adapter=copy: was made for the base model /gone/llama"]),
        ({"base": None, "metadata": None}, ["action.evaluate=false"], ["adapter=copy: does not say which base model"]),
        ({"metadata": None}, [], ["adapter=copy: does not say what it was trained on; type task=NAME", "or action.evaluate=false"]),
        ({"metadata": None}, ["action.evaluate=false"], None),
        ({"task": None}, ["action=evaluate"], ["adapter=copy: does not say what it was trained on; type task=NAME"]),
        ({"task": None}, ["task=instruction", "task.data.path=pairs.jsonl"], None),
        ({"base": "llama"}, ["model=pretrained", f"model.name_or_path={BASE}"], None),
        ({}, ["task.data.path=gone.jsonl"], ["task.data.path=gone.jsonl: "]),
        ({"task": {"objective": {"rewards": ["/theirs.py:run"]}}}, [], ["adapter=copy: does not say what it was trained on"]),
        ({"task": {"metrics": ["pkg://json/tool.py:main"]}}, [], None),
    ],
)  # fmt: skip
def test_an_adapter_outside_a_run_says_its_base_and_its_task_or_they_must_be_typed(
    hub, trained, data, monkeypatch, tmp_path, changes, typed, told
):
    rewritten(shutil.copytree(trained / "adapter", tmp_path / "copy"), **changes)
    shutil.copyfile(data, tmp_path / data.name)
    try:
        spec = peftrun.load("action=reload", "adapter=copy", *typed)
    except peftrun.ConfigError as error:
        assert told and all(text in "\n".join(error.lines) for text in told), error.lines
        assert len(error.lines) == 1, error.lines
        return
    assert told is None and spec.model.name_or_path == BASE and spec.model.package is None
    if spec.action.evaluate:
        assert spec.task.data.path == data.name and spec.task.data.num_test_rows in (8, 100)
        assert spec.task.metrics is None


PLACES = {
    "reload": ["action=reload"],
    "evaluate": ["action=evaluate"],
    "generate": ["action=generate", "action.prompt=hi", "action.max_new_tokens=2"],
    "merge": ["action=merge", "action.num_eval_rows=2"],
    "save": ["action=save", "action.dtype=bfloat16"],
    "combine": ["action=combine"],
    "inspect": ["action=inspect"],
    "diff": ["action=diff"],
    "export": ["action=export", "target=vllm"],
    "unmerge": ["action=unmerge", "model=pretrained", "model.name_or_path=merged"],
    "compare": ["action=compare"],
}


@pytest.mark.slow
@cases(
    "place, source, typed",
    [
        (place, source, typed)
        for place in PLACES
        for source in ("run", "folder", "me/even", "me/even@v1")
        for typed in ("known", "typed")
        if typed == "known" or place in ("reload", "evaluate", "merge", "generate", "save", "combine")
    ],
)
def test_wherever_an_adapter_is_asked_for(hub, cli, merged, trained, data, llama, tmp_path, place, source, typed):
    shutil.copyfile(data, data.name)
    if source == "folder":
        rewritten(shutil.copytree(trained / "adapter", tmp_path / "folder"))
    if place == "unmerge":
        shutil.copytree(merged, tmp_path / "merged")
    path = str(trained) if source == "run" else source
    chosen = [f"adapter={{a: {path}, b: {trained}}}"] if place in ("combine", "diff") else [f"adapter={path}"]
    chosen = [f"runs=[{path}, {trained / 'adapter'}]"] if place == "compare" else chosen
    model = [
        "model=pretrained",
        f"model.name_or_path={BASE}",
        "task=instruction",
        f"task.data.path={data.name}",
        "task.data.num_test_rows=8",
    ]
    outcome = cli(*PLACES[place], *chosen, *(model if typed == "typed" else []), *ON_CPU)
    assert outcome.code == 0, outcome.err
    if "me/" in source and place != "compare":
        commit = hub.v1 if source.endswith("v1") else hub.latest
        assert {facts["commit"] for facts in outcome.record()["hub_adapters"].values()} == {commit}
    if place == "reload" and typed == "known":
        assert "peftrun action=merge adapter=" in outcome.out and "model=" not in outcome.out, outcome.out


@pytest.fixture(scope="module")
def merged(hub, trained, tmp_path_factory):
    """A model with me/even merged in."""
    outcome = cli_here(tmp_path_factory.mktemp("merged"), "action=merge", f"adapter={trained}", *ON_CPU)
    assert outcome.code == 0 and outcome.run_dir is not None, outcome.err
    return outcome.run_dir / "merged"
