"""Groups through submitit: real jobs on this machine, and SLURM's commands played by scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import clusters
import pytest
from cases import cases
from conftest import TINY_STEPS, subprocess_cli

from peftrun.errors import ArtifactError
from peftrun.sweep import cluster

pytestmark = pytest.mark.slow

# Imported outside of any test: its log handlers keep the streams of the moment, which in a test are captured ones and then closed.
pytest.importorskip("submitit", reason="package submitit is not installed: pip install 'peftrun[slurm]'")

LOCAL = ["hydra/launcher=shared_base_slurm", "hydra.launcher.cluster=local"]
DIES = ["+hydra.launcher.executor.local_setup=['kill -9 $$']"]  # each job, before it has begun


def test_a_group_is_completed_by_a_job(cli, llama, on_tiny, tmp_path):
    outcome = cli("-m", *on_tiny(llama), *TINY_STEPS, "seed=1,2", LOCAL[0], "hydra.launcher.cluster=debug")
    assert outcome.code == 0, outcome.err
    assert "submitit (debug): 1 group of 2 cells" in outcome.err
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/sweeps/*/*/record.json")]
    assert [record["status"] for record in found] == ["completed", "completed"]


def test_a_group_whose_jobs_always_die_fails_with_the_reason(cli, llama, on_tiny, tmp_path):
    outcome = cli("-m", *on_tiny(llama), *TINY_STEPS, "seed=1,2", *LOCAL, *DIES, "hydra.launcher.max_retries=1")
    assert outcome.code == 1
    assert outcome.err.count("sent again, 1 of 1") == 1
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/sweeps/*/*/record.json")]
    assert [record["status"] for record in found] == ["failed", "failed"]
    assert all("the worker died 2 times" in record["error"] for record in found)


def test_a_killed_worker_is_replaced_and_finished_cells_stay(llama, on_tiny, tmp_path):
    done = clusters.killed_once(tmp_path, *on_tiny(llama), *LOCAL)
    clusters.check_completed(tmp_path, done)


def test_jobs_of_a_launch_that_was_killed_end_before_their_cells_are_sent_again(llama, on_tiny, tmp_path):
    args = [*on_tiny(llama), *clusters.GRID, *LOCAL]
    command = [sys.executable, "-m", "peftrun", "-m", *args]
    with (tmp_path / "err.txt").open("w") as err:
        sweep = subprocess.Popen(command, cwd=tmp_path, stdout=err, stderr=err, stdin=subprocess.DEVNULL)
        worker = clusters.training(tmp_path, sweep)
        sweep.kill()
        sweep.wait()
    os.kill(worker, 0)  # it still trains
    again = subprocess_cli(tmp_path, "-m", *args)
    assert again.code == 0, again.err
    assert "1 job of an earlier launch still runs" in again.err
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert {record["status"] for _, record in clusters.records(tmp_path).values()} == {"completed"}


@cases(
    "args, parts",
    [
        (["hydra.launcher.cluster=moon"], ["hydra.launcher.cluster=moon", "slurm, local, debug"]),
        (["hydra.launcher.max_retries=-1"], ["hydra.launcher.max_retries=-1", "at least 0"]),
        (["hydra.launcher.parallel=0"], ["hydra.launcher.parallel=0", "at least 1"]),
        (["+hydra.launcher.executor.moon=1"], ["hydra.launcher.executor", "moon"]),
        (["hydra.launcher.executor.timeout_min=long"], ["hydra.launcher.executor", "timeout_min"]),
        (["hydra.launcher.cluster=slurm"], ["hydra.launcher.cluster=slurm", "srun", "hydra.launcher.cluster=local"]),
    ],
)
def test_what_cannot_be_sent_is_told_in_one_line(cli, llama, on_tiny, args, parts):
    outcome = cli("-m", *on_tiny(llama), "seed=1,2", *LOCAL, *args)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert any(all(part in line for part in parts) for line in outcome.err.splitlines() if line.startswith("peftrun: "))


def test_without_the_package_one_line_names_what_to_install(cli, llama, on_tiny, monkeypatch):
    monkeypatch.setattr("peftrun.system.packages.find_package_dir", lambda name: None if name == "submitit" else Path())
    outcome = cli("-m", *on_tiny(llama), "seed=1,2", *LOCAL)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert "pip install 'peftrun[slurm]'" in outcome.err


def test_a_worker_that_does_not_see_the_folder_says_so_and_ends_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "VISIBLE", 0.0)
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "config.yaml").write_text("")
    line = cluster.run_group([str(tmp_path / "seen"), str(tmp_path / "unseen")], str(tmp_path), 1)
    assert f"does not see {tmp_path / 'unseen'}" in line and "hydra.sweep.dir=FOLDER" in line
    told = cluster.ClusterBackend(
        "a cluster", start=lambda folders: 1, end=lambda handle: cluster.JobEnd(fault=line), stop=print
    )
    with pytest.raises(ArtifactError, match="does not see"):
        cluster.run_on_cluster([[tmp_path / "seen"]], told, None, 2)


def slurm(where: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str) -> Path:
    """SLURM's commands as scripts: a job is a process of this machine."""
    scripts = {
        "sbatch": sbatch,
        "srun": 'while [[ $1 == --* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done; exec "$@"',
        "sacct": "echo 'JobID|State'",
        "scancel": "exit 0",
    }
    folder = where / "bin"
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_job_that_slurm_refuses_is_told_in_one_line(cli, llama, on_tiny, tmp_path, monkeypatch):
    slurm(tmp_path, monkeypatch, "echo 'sbatch: error: invalid partition specified: moon' >&2; exit 1")
    outcome = cli("-m", *on_tiny(llama), "seed=1,2", LOCAL[0], "hydra.launcher.executor.slurm_partition=moon")
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert "invalid partition specified: moon" in outcome.err


def test_every_option_reaches_sbatch_and_the_jobs_complete(cli, llama, on_tiny, tmp_path, monkeypatch):
    job = "SLURM_JOB_ID=7 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_CPUS_PER_TASK=1"
    folder = slurm(
        tmp_path,
        monkeypatch,
        f'cp "$1" "$(dirname $0)/job.sh"; {job} bash "$1" >/dev/null 2>&1 & echo "Submitted batch job 7"',
    )
    outcome = cli(
        "-m", *on_tiny(llama), *TINY_STEPS, "seed=1,2", LOCAL[0], "hydra.launcher.executor.slurm_partition=gpu",
        "hydra.launcher.executor.cpus_per_task=3", "hydra.launcher.executor.slurm_additional_parameters={licenses: 'x:1'}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    script = (folder / "job.sh").read_text()
    for line in ("--partition=gpu", "--cpus-per-task=3", "--licenses=x:1", "--time=1440", "--job-name=peftrun"):
        assert f"#SBATCH {line}\n" in script
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/sweeps/*/*/record.json")]
    assert [record["status"] for record in found] == ["completed", "completed"]


def test_ctrl_c_ends_the_jobs_and_their_records(llama, on_tiny, tmp_path):
    clusters.check_interrupted(tmp_path, "-m", *on_tiny(llama), *clusters.GRID, *LOCAL)
