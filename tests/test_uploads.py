"""A training that is pushed to the Hub, or copied to a URL, while it runs; and resumed from there."""

import shutil
from pathlib import Path

import fake_hub
import hub_repos
import pytest
from cases import cases
from conftest import subprocess_cli
from faults import check_refused, instead

from peftrun.artifacts.remote_stores import UrlStore

STEPS = [
    "trainer.max_steps=6",
    "trainer.save_steps=2",
    "trainer.logging_steps=1",
    "action.num_samples=0",
    "trainer.save_total_limit=1",
]
WEIGHTS = "adapter/adapter_model.safetensors"
RESUMABLE = {"config.yaml", "record.json", "metrics.jsonl"}


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def hub_environment(hub: fake_hub.Hub, folder: Path) -> dict[str, str]:
    """For a process that pushes to this Hub, with a home of its own."""
    return {
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": fake_hub.TOKEN,
        "HF_HOME": str(folder / "home"),
        "HF_ENDPOINT": hub.address,
    }


@pytest.mark.slow
def test_checkpoints_are_pushed_and_a_run_resumed_from_the_hub_ends_as_the_uninterrupted_one(cli, on_tiny, llama, tmp_path):  # fmt: skip
    command = [*on_tiny(llama), *STEPS]
    push = ["trainer.push_to_hub=true", "trainer.hub_model_id=me/even", "trainer.hub_strategy=checkpoint"]
    with fake_hub.running() as hub:
        whole = subprocess_cli(tmp_path, *command, *push, **hub_environment(hub, tmp_path))
        assert whole.code == 0, whole.err
    assert hub.repos["me/even"]["visibility"] == "private"
    *checkpoints, result = hub.history
    assert checkpoints, "a checkpoint was sent while training"
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(result)
    assert result["adapter_model.safetensors"] == (whole.run_dir / WEIGHTS).read_bytes()
    assert not [name for name in result if "checkpoint" in name], "a complete training is not resumed"
    for files in checkpoints:
        inside = [name.partition("/")[2] for name in files if name.startswith("last-checkpoint/")]
        assert {*RESUMABLE} <= set(inside) and len({name.split("/")[1] for name in inside if "/" in name}) == 1
        assert not [name for name in files if "training_args" in name]
        assert fake_hub.TOKEN.encode() not in b"".join(files.values())
    shutil.rmtree(whole.run_dir.parent)  # the machine is gone

    with hub_repos.serving(tmp_path / "elsewhere") as served:
        commit = served.commit("me/even", checkpoints[0])
        served.commit("me/even", result)
        resumed = cli(*command, f"action.resume=me/even@{commit}")
        assert resumed.code == 0, resumed.err
        assert "continuing me/even" in resumed.err + resumed.out
        assert (resumed.run_dir / WEIGHTS).read_bytes() == result["adapter_model.safetensors"]
        ended = cli(*command, "action.resume=hf://me/even")
        assert ended.code == 1 and "action.resume=hf://me/even: holds no last-checkpoint" in ended.err


@pytest.mark.slow
def test_a_hub_that_fails_while_training_costs_a_warning_and_at_the_end_an_error(on_tiny, llama, tmp_path):
    command = [
        *on_tiny(llama),
        *STEPS,
        "trainer.push_to_hub=true",
        "trainer.hub_model_id=me/even",
        "action.evaluate_before=false",
    ]
    with fake_hub.running() as hub:
        hub.refuses_commits = True
        outcome = subprocess_cli(tmp_path, *command, **hub_environment(hub, tmp_path))
        hub.refuses = 403
        refused = subprocess_cli(tmp_path, *command, **hub_environment(hub, tmp_path))
    assert outcome.code == 1 and outcome.err.count("a checkpoint could not be sent") == 1
    assert "the Hub did not accept the result" in outcome.err and "Traceback" not in outcome.err
    assert outcome.record()["status"] == "completed" and (outcome.run_dir / WEIGHTS).is_file()
    assert refused.code == 1 and "trainer.hub_model_id=me/even: the Hub refused it" in refused.err
    assert "Traceback" not in refused.err and "step 1/" not in refused.err + refused.out


def test_a_run_is_copied_to_a_url_whole_or_not_at_all(cli, on_tiny, llama, tmp_path, monkeypatch):
    command = [*on_tiny(llama), *STEPS, "action.upload_to=memory://runs"]
    import fsspec

    memory, written = fsspec.filesystem("memory"), []
    put, send = type(memory).put_file, UrlStore.send_checkpoint
    monkeypatch.setattr(type(memory), "put_file", lambda self, here, there, **k: (written.append(there), put(self, here, there, **k))[1])  # fmt: skip
    kept = {}

    def send_and_keep(self, staged):
        send(self, staged)
        kept[len(kept)] = {name: memory.cat_file(name) for name in memory.find(f"/runs/{staged.parent.name}")}

    monkeypatch.setattr(UrlStore, "send_checkpoint", send_and_keep)
    whole = cli(*command)
    assert whole.code == 0, whole.err
    root = f"/runs/{whole.run_dir.name}"
    copied = {name.removeprefix(f"{root}/"): memory.cat_file(name) for name in memory.find(root)}
    here = {
        name: content for name, content in read_files(whole.run_dir).items() if not name.endswith("training_args.bin")
    }
    assert copied == here, "the run folder, byte for byte"
    assert written[-1].endswith("record.json") and not [name for name in copied if name.startswith(".upload")]
    loaded = cli("action=reload", f"adapter=memory://runs/{whole.run_dir.name}", "device=cpu", "device.dtype=float32")
    assert loaded.code == 0, loaded.err
    for name, content in kept[0].items():  # as it was left there after the first checkpoint
        memory.pipe_file(name.replace(root, "/runs/killed"), content)
    resumed = cli(*command, "action.resume=memory://runs/killed")
    assert resumed.code == 0, resumed.err
    assert (resumed.run_dir / WEIGHTS).read_bytes() == copied[WEIGHTS]
    empty = cli(*command, "action.resume=memory://runs/none")
    assert empty.code == 1 and "action.resume=memory://runs/none: there is no such folder" in empty.err


@cases(
    "typed, said",
    [
        (["trainer.push_to_hub=true"], "trainer.hub_model_id is not set"),
        (["trainer.push_to_hub=true", "trainer.hub_model_id=even"], "type trainer.hub_model_id=ORG/NAME"),
        (["trainer.push_to_hub=true", "trainer.hub_model_id=me/even", "trainer.hub_strategy=checkpoint", "trainer.save_strategy=no"], "type trainer.hub_strategy=end"),
        (["action.upload_to=runs"], "action.upload_to=runs: is no URL"),
        (["action.upload_to=https://host/runs"], "can only be read"),
        (["action.upload_to=abfs://box/runs"], "needs package adlfs; type `pip install adlfs`"),
        (["action.resume=abfs://box/runs"], "action.resume=abfs://box/runs: needs package adlfs"),
        (["trainer.hub_strategy=always"], "trainer.hub_strategy=always"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_sent_is_refused(cli, tmp_path, data, monkeypatch, typed, said):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    check_refused(cli, tmp_path, instead(["task=instruction", f"task.data.path={data}"], typed), [said])
