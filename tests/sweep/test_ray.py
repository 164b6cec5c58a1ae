"""Groups as tasks of a real Ray cluster on this machine."""

import os
from pathlib import Path

import clusters
import pytest
from conftest import TINY_STEPS, subprocess_cli

pytestmark = pytest.mark.slow

# Imported outside of any test: its log handlers keep the streams of the moment, which in a test are captured ones and then closed.
pytest.importorskip("ray", reason="package ray is not installed: pip install 'peftrun[ray]'")

RAY = "hydra/launcher=shared_base_ray"


def test_a_killed_worker_is_replaced_and_finished_cells_stay(llama, on_tiny, tmp_path):
    done = clusters.killed_once(tmp_path, *on_tiny(llama), RAY)
    clusters.check_completed(tmp_path, done)
    assert "raylet" not in done.stdout + done.stderr  # Ray's own words stay in its logs


def test_nothing_is_written_into_the_home_folder(llama, on_tiny, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    outcome = subprocess_cli(
        tmp_path, "-m", *on_tiny(llama), *TINY_STEPS, "seed=1,2", RAY, "hydra.launcher.parallel=1",
        HOME=str(home), PEFTRUN_CACHE=os.environ["PEFTRUN_CACHE"],
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert not (home / ".ray").exists()


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["hydra.launcher.address=127.0.0.1:1"], ["hydra.launcher.address=127.0.0.1:1", "refused", "address=null"]),
        (["hydra.launcher.address=auto"], ["hydra.launcher.address=auto", "address=null"]),
        (["+hydra.launcher.init.moon=1"], ["hydra.launcher.init", "moon"]),
        (["hydra.launcher.max_retries=-1"], ["hydra.launcher.max_retries=-1", "at least 0"]),
    ],
)
def test_what_cannot_be_sent_is_told_in_one_line(cli, llama, on_tiny, args, parts):
    outcome = cli("-m", *on_tiny(llama), "seed=1,2", RAY, *args)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert any(all(part in line for part in parts) for line in outcome.err.splitlines() if line.startswith("peftrun: "))


def test_a_gpu_that_no_machine_has_is_not_waited_for(llama, on_tiny, tmp_path):
    outcome = subprocess_cli(tmp_path, "-m", *on_tiny(llama), "seed=1,2", RAY, "hydra.launcher.num_gpus=64")
    assert outcome.code == 1
    assert "hydra.launcher.num_gpus=64: this machine has" in outcome.err


def test_without_the_package_one_line_names_what_to_install(cli, llama, on_tiny, monkeypatch):
    monkeypatch.setattr("peftrun.system.packages.find_package_dir", lambda name: None if name == "ray" else Path())
    outcome = cli("-m", *on_tiny(llama), "seed=1,2", RAY)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert "pip install 'peftrun[ray]'" in outcome.err
