"""action=export with push=true: one commit with exactly the folder's bytes; nothing is sent before it is asked for."""

import fake_hub
import pytest
from cases import cases
from conftest import subprocess_cli
from fake_hub import COMMIT, TOKEN

ONLINE = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_TOKEN_PATH": "nowhere"}


@pytest.fixture
def hub():
    with fake_hub.running() as found:
        yield found


def export(where, trained, hub, *more, **env):
    asked = ["action=export", f"adapter={trained}", "repo_id=me/even", "base_model=me/tiny", *more]
    return subprocess_cli(where, *asked, **ONLINE | {"HF_ENDPOINT": hub.address, "HF_HOME": str(where / "home")} | env)


def test_exactly_the_folder_is_sent_as_one_commit(tmp_path, trained, hub):
    outcome = export(tmp_path, trained, hub, "push=true")
    assert outcome.code == 0, outcome.err
    folder = outcome.run_dir / "export"
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(hub.files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.yaml",
        "peftrun.json",
    }
    assert len(hub.commits) == 1 and hub.repos["me/even"]["visibility"] == "private"
    assert outcome.record()["export"]["pushed"]["commit"] == COMMIT
    assert hub.cards == [(folder / "README.md").read_text()], "the Hub was asked whether the card is one"
    assert TOKEN not in (outcome.run_dir / "record.json").read_text() + outcome.out + outcome.err


@pytest.mark.slow
def test_it_can_be_public(tmp_path, trained, hub):
    assert export(tmp_path, trained, hub, "push=true", "private=false").code == 0
    assert hub.repos["me/even"]["visibility"] == "public"


@pytest.mark.slow
def test_without_push_nothing_is_asked_and_every_file_is_listed(tmp_path, trained, hub):
    outcome = export(tmp_path, trained, hub)
    assert outcome.code == 0 and hub.asked == []
    for path in (outcome.run_dir / "export").iterdir():
        assert f"{path.stat().st_size:,} bytes  {path.name}" in outcome.out
    assert "me/even (private)" in outcome.out and "Export by peftrun" in outcome.out


@cases("env, said", [({"HF_TOKEN": ""}, "no token for the Hub"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")])
def test_what_cannot_be_sent_is_told_before_anything_is_written(tmp_path, trained, hub, env, said):
    outcome = export(tmp_path, trained, hub, "push=true", **env)
    assert outcome.code == 1 and said in outcome.err and "Traceback" not in outcome.err
    assert hub.asked == [] and outcome.run_dir is None


@pytest.mark.slow
def test_a_base_that_nobody_finds_is_not_published(tmp_path, trained, hub):
    outcome = export(tmp_path, trained, hub, "push=true", "base_model=null")
    assert outcome.code == 1 and "action.base_model is not set" in outcome.err
    assert hub.asked == [] and outcome.run_dir is None


def test_a_hub_that_refuses_is_told_in_one_line_and_the_folder_stays(tmp_path, trained, hub):
    hub.refuses = 403
    outcome = export(tmp_path, trained, hub, "push=true")
    lines = [line for line in outcome.err.splitlines() if line.startswith("peftrun: ")]
    assert outcome.code == 1 and len(lines) == 1 and "the Hub did not accept it" in lines[0] and "403" in lines[0]
    assert (outcome.run_dir / "export" / "README.md").is_file() and hub.files == {}
    assert outcome.record()["status"] == "failed"


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_told_in_one_line(tmp_path, trained, hub):
    outcome = export(tmp_path, trained, hub, "push=true", HF_ENDPOINT="http://127.0.0.1:9")
    lines = [line for line in outcome.err.splitlines() if line.startswith("peftrun: ")]
    assert outcome.code == 1 and len(lines) == 1 and "the Hub did not accept it" in lines[0]
