"""Cells are composed fast, and exactly as Hydra composes them one by one."""

import copy
import itertools

import pytest
from cases import cases
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import open_dict

from peftrun.composition import compose
from peftrun.config import paths
from peftrun.config import values as config
from peftrun.sweep import cells

OURS = """# Ours.
# peftrun lora=ours
defaults:
  - lora
  - _self_

r: ${trainer.per_device_train_batch_size}
lora_alpha: ${oc.select:lora.r}
"""
NUMBERED = OURS.replace("r: ${trainer.per_device_train_batch_size}", "r: ${hydra:job.num}")


@pytest.fixture
def sweep(tmp_path):
    """(loader, master) of a sweep that knows a team's folder."""
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "ours.yaml").write_text(OURS)
    (tmp_path / "lora" / "numbered.yaml").write_text(NUMBERED)
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        overrides = [f"hydra.searchpath=[file://{tmp_path}]"]
        yield hydra.config_loader, hydra.compose_config("config", overrides, RunMode.MULTIRUN)


def jobs(**axes):
    return [list(one) for one in itertools.product(*([f"{key}={item}" for item in axes[key]] for key in axes))]


def by_hydra(loader, master, overrides, number):
    """What Hydra's own launcher hands to a run."""
    cfg = loader.load_sweep_config(master, list(overrides))
    with open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = number
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(cfg)
        task = copy.deepcopy(cfg)
        with open_dict(task):
            del task["hydra"]
        return config.resolve_values(task)
    finally:
        HydraConfig.instance().cfg = before


GRIDS = {
    "values": jobs(**{"lora.r": [4, 8], "trainer.learning_rate": ["1e-4", "0.1"], "seed": [1, 2]}),
    "groups": jobs(lora=["lora", "dora", "ia3"], experiment=["quick_look", "gpt2_classic"], seed=[3]),
    "a group after a value": [["lora.r=3", "lora=rslora"], ["lora=rslora", "lora.r=3"]],
    "interpolations": jobs(**{"lora": ["ours", "lora"], "trainer.per_device_train_batch_size": [2, 3]}),
    "Hydra's own part": jobs(lora=["numbered"], seed=[1, 2, 3]),
    "an interpolation typed": [["seed=${lora.r}", "lora.r=5"], ["seed=${hydra:job.num}", "lora.r=5"]],
    "new keys, lists, mappings": [
        ["lora.target_modules=[q_proj]", "++lora.rank_pattern={q_proj: 4}"],
        ["lora.target_modules=all-linear", "+experiment=quick_look"],
        ["~adapter"], ["adapter={a: x}", "active_adapter=a"], ["model={revision: main}"],
    ],
}  # fmt: skip


@cases("grid", GRIDS, every=4)
def test_cells_are_what_hydra_composes(sweep, grid):
    loader, master = sweep
    composer = cells.CellComposer(loader, master)
    for number, overrides in enumerate(GRIDS[grid], 5):
        try:
            wanted = by_hydra(loader, master, overrides, number)
        except compose.REFUSALS as error:
            with pytest.raises(type(error)):
                composer.compose(overrides, number)
            continue
        assert composer.compose(overrides, number) == wanted


def test_what_was_composed_for_one_cell_is_not_changed_by_another(sweep):
    composer = cells.CellComposer(*sweep)
    first = composer.compose(["lora.target_modules=[q_proj]"])
    composer.compose(["++lora.target_modules=[v_proj,k_proj]", "lora.r=99"])
    assert composer.compose(["lora.target_modules=[q_proj]"]) == first


def all_of(sweep, wanted):
    return cells.compose_cells(*sweep, wanted, 0, None)


def test_cells_that_are_identical_after_resolution_are_one(sweep):
    found = all_of(
        sweep, [["seed=0"], ["lora.r=4"], ["lora.r=8"], ["trainer.learning_rate=1e-3"], ["trainer.warmup_steps=0.160"]]
    )
    assert [one.numbers for one in found] == [[0, 2, 3, 4], [1]]
    assert len({one.id for one in found}) == 2 and all(len(one.id) == 12 for one in found)


def test_a_cell_that_is_refused_does_so_alone(sweep):
    found = all_of(
        sweep, [["lora.r=0"], ["lora.r=4"], ["lora=ia3", "lora.r=4"], ["lora=nosuch"], ["lora.r=${nowhere}"]]
    )
    assert [bool(one.spec) for one in found] == [False, True, False, False, False]
    told = [" ".join(one.problems) for one in found]
    assert "lora.r=0: must be greater" in told[0] and "there is no such key" in told[2]
    assert "there is no such option" in told[3] and "lora.r" in told[4]
    assert found[0].id and not found[3].id


def test_a_sweep_of_which_nothing_can_be_composed_is_refused(sweep):
    with pytest.raises(compose.REFUSALS):
        all_of(sweep, [["lora.rr=1"], ["lora.rr=2"]])


def test_the_id_is_that_of_what_is_run_not_of_how_it_is_continued(sweep):
    plain, resumed, other = all_of(sweep, [["seed=1"], ["seed=2"], ["seed=3"]])
    assert len({plain.id, resumed.id, other.id}) == 3
    values = copy.deepcopy(plain.values)
    values["action"]["resume"] = "some/where"
    assert cells.compute_cell_id(values) == plain.id


@pytest.mark.slow
def test_three_hundred_cells_are_all_composed(sweep):
    grid = jobs(**{"lora.r": [4, 8, 16], "trainer.learning_rate": range(1, 11), "seed": range(10)})
    assert len(all_of(sweep, grid)) == 300


def test_labels_say_what_differs_and_the_command_says_all(sweep):
    found = all_of(sweep, [["task=sms_spam", "lora.r=4"], ["task=sms_spam", "lora.r=8"]])
    assert list(cells.label_cells(found).values()) == ["lora.r=4", "lora.r=8"]
    assert cells.format_command(found[0], "/team") == "peftrun --config-dir /team task=sms_spam lora.r=4"
