"""The search: batches of trials trained on one base, what failed, what is done again, and what is not."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import TINY_STEPS

pytestmark = pytest.mark.slow

# Imported outside of any test: its log handlers keep the streams of the moment, which in a test are captured ones and then closed.
pytest.importorskip("optuna", reason="package optuna is not installed: pip install 'peftrun[sweeper]'")

SEARCH = ["hydra/sweeper=optuna", "hydra/launcher=shared_base", "hydra.sweeper.n_jobs=3"]
SPACE = ["lora.r=choice(2,4)", "trainer.learning_rate=tag(log,interval(1e-4,1e-2))"]


def sweep(where: Path) -> tuple[Path, dict]:
    """The only sweep folder and its sweep.json."""
    (folder,) = where.glob("outputs/sweeps/*")
    return folder, json.loads((folder / "sweep.json").read_text())


def written(folder: Path) -> dict[str, int]:
    """When each trained adapter was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("*/adapter/*.safetensors")}


def test_a_search_trains_its_batches_together_and_goes_on_where_it_was(cli, llama, on_tiny, tmp_path):
    asked = ["-m", *on_tiny(llama)[:-1], *TINY_STEPS, *SEARCH, *SPACE]
    first = cli(*asked, "hydra.sweeper.n_trials=6")
    assert first.code == 0, first.err
    folder, found = sweep(tmp_path)
    cells = {cell["id"]: cell for cell in found["cells"]}
    assert len(cells) == 6 and {cell["how"] for cell in cells.values()} == {"together"}
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(cell["objective"] for cell in cells.values())
    assert f"{best['best_value']:.6g}" in first.out
    before = written(folder)
    again = cli(*asked, "hydra.sweeper.n_trials=9")
    assert again.code == 0, again.err
    folder, found = sweep(tmp_path)
    after = written(folder)
    assert len(after) == 9 and {path: after[path] for path in before} == before


def test_another_seed_proposes_other_trials(cli, llama, on_tiny, tmp_path):
    asked = ["-m", *on_tiny(llama)[:-1], *TINY_STEPS, *SEARCH, *SPACE, "hydra.sweeper.n_trials=3"]
    assert cli(*asked).code == cli(*asked, "hydra.sweeper.sampler.seed=1").code == 0
    one, other = (set(written(folder)) for folder in tmp_path.glob("outputs/sweeps/*"))
    assert len(one) == len(other) == 3 and not {Path(path).parts[-3] for path in one} & {
        Path(path).parts[-3] for path in other
    }


def test_a_failed_trial_does_not_stop_the_search(cli, llama, on_tiny, tmp_path):
    modules = "lora.target_modules=choice(all-linear,nothing_here)"
    outcome = cli(
        "-m", *on_tiny(llama), *TINY_STEPS, *SEARCH, modules, "lora.r=choice(2,4)", "hydra.sweeper.n_trials=6"
    )
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert "lora.target_modules=nothing_here: matches no module" in outcome.err
    folder, found = sweep(tmp_path)
    assert {cell["status"] for cell in found["cells"]} == {"completed", "failed"}
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert best["best_params"]["lora.target_modules"] == "all-linear"


def test_a_search_in_which_all_trials_fail_says_why(cli, llama, on_tiny):
    modules = "lora.target_modules=choice(nothing_here,nor_here)"
    outcome = cli("-m", *on_tiny(llama), *TINY_STEPS, *SEARCH, modules, "hydra.sweeper.n_trials=3")
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert "nothing_here: matches no module" in outcome.err


def test_a_study_can_be_kept_in_a_file(cli, llama, on_tiny, tmp_path):
    study = [f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db", "hydra.sweeper.study_name=tiny"]
    asked = ["-m", *on_tiny(llama)[:-1], *TINY_STEPS, *SEARCH, *SPACE, "hydra.sweeper.n_trials=3", *study]
    assert cli(*asked).code == cli(*asked).code == 0
    import optuna

    assert len(optuna.load_study(study_name="tiny", storage=study[0].partition("=")[2]).trials) == 6


@pytest.mark.parametrize("key", ["n_trials", "n_jobs"])
def test_a_search_of_nothing_is_refused(cli, llama, on_tiny, key):
    outcome = cli("-m", *on_tiny(llama), *SEARCH, *SPACE, f"hydra.sweeper.{key}=0")
    assert outcome.code == 1 and f"hydra.sweeper.{key}=0: must be at least 1" in outcome.err


def test_without_the_package_one_line_names_what_to_install(cli, llama, on_tiny, monkeypatch):
    monkeypatch.setattr("peftrun.sweep.optuna_sweeper._is_installed", lambda: False)
    outcome = cli("-m", *on_tiny(llama), *SEARCH, "hydra.sweeper.n_trials=3", *SPACE)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert "pip install 'peftrun[sweeper]'" in outcome.err
