"""Old names of keys, and configs that are older than some keys, mean what they meant."""

import copy
import json
import shutil

import pytest
from conftest import TINY_STEPS
from faults import check_failed
from team_packages import write

import peftrun
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import migrations
from peftrun.config import values as config
from peftrun.planning import throughput

ADDED_SINCE = [
    "device.deterministic",
    "slots",
    "template",
    "trainer.padding_free",
    "task.loss_on",
    "lora.lora_fa",
    "device.strategy",
]


@pytest.fixture
def renamed(monkeypatch):
    """No key has been renamed so far: two are as if they had been."""
    monkeypatch.setitem(migrations.RENAMED, "trainer.lr", ("trainer.learning_rate", "0.1.0"))
    monkeypatch.setitem(migrations.RENAMED, "dtype", ("device.dtype", "0.1.0"))
    monkeypatch.setattr(config, "_REPORTED", set())


def without(values, keys):
    found = copy.deepcopy(values)
    for key in keys:
        *path, last = key.split(".")
        holder = found
        for part in path:
            holder = holder[part]
        del holder[last]
    return found


def older(trained, where, more=()):
    """A copy of a run as an earlier version would have left it."""
    shutil.copytree(trained, where)
    values = without(config.read_values(trained / "config.yaml"), [*ADDED_SINCE, *more])
    (where / "config.yaml").write_text(config.values_to_yaml(values))
    return where


def test_every_key_that_is_added_exists_and_has_a_value_that_is_allowed():
    for owner, keys in {None: migrations.ADDED, **migrations.ADDED_TO}.items():
        group = {None: [], ("lora.method", "lora"): ["lora=lora"]}.get(owner, [f"action={owner[1]}"] if owner else [])
        values = _values(*group)
        old = without(values, [key for key in keys if not _below_none(values, key)])
        found, lines = migrations.upgrade_values(old)
        assert len(lines) == 1 and all(f"{key}=" in lines[0] for key in keys), lines
        assert config.flatten_keys(found).keys() == config.flatten_keys(values).keys()


def test_an_old_run_means_what_it_did(trained, tmp_path, capfd):
    run = older(trained, tmp_path / "old")
    values = config.read_run(run / "config.yaml")
    told = capfd.readouterr().err
    assert "device.deterministic=false" in told and told.count("\n") == 1
    spec = build_spec_from_values(values)
    assert spec.device.deterministic is False and spec.slots == {} and spec.template is None
    config.read_run(run / "config.yaml")
    assert capfd.readouterr().err == ""  # once
    now = config.read_values(trained / "config.yaml")
    assert {key for key, value in config.flatten_keys(values).items() if config.flatten_keys(now)[key] != value} <= {
        "device.deterministic"
    }


def test_todays_run_needs_nothing(trained):
    values = config.read_values(trained / "config.yaml")
    assert migrations.upgrade_values(values) == (values, [])


def test_an_old_run_is_continued(trained, tmp_path, cli, llama, on_tiny):
    run = older(trained, tmp_path / "old")
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps(record | {"status": "failed"}))
    typed = [*on_tiny(llama), *TINY_STEPS, f"action.resume={run}"]
    check_failed(cli, tmp_path, typed, ("device.deterministic=True: the run has False", "resumed with its own config"))
    done = cli(*typed, "device.deterministic=false")
    assert done.code == 0, done.err
    assert f"continuing {run} after step 4" in done.err


def test_the_pace_of_an_old_run_is_known(trained, tmp_path, capfd):
    run = older(trained, tmp_path / "outputs" / "train" / "old")
    found = throughput._read_past_run(
        run / "record.json", json.loads((run / "record.json").read_text())["base"]["name"]
    )
    assert found is not None and capfd.readouterr().err == ""


def test_an_old_name_is_typed(renamed, cli):
    shown = cli("trainer.lr=0.5", "++dtype=float32", "--cfg", "job")
    assert shown.code == 0, shown.err
    assert "learning_rate: 0.5" in shown.out and "dtype: float32" in shown.out
    assert shown.err.count("trainer.lr is called trainer.learning_rate since 0.1.0; carried over") == 1
    assert peftrun.load("trainer.lr=0.25").trainer.learning_rate == 0.25


def test_an_old_name_stands_in_a_file_of_a_team(renamed, tmp_path, capfd):
    write(tmp_path / "team", "trainer/ours", "defaults: [default, _self_]\nlr: 0.5\n")
    write(tmp_path / "team", "experiment/ours", "trainer: {lr: 0.25}\ndtype: float32\n")
    for name, rate in {"trainer=ours": 0.5, "experiment=ours": 0.25}.items():
        assert peftrun.load(name, config_dirs=[tmp_path / "team"]).trainer.learning_rate == rate
    assert peftrun.load("experiment=ours", config_dirs=[tmp_path / "team"]).device.dtype == "float32"
    assert capfd.readouterr().err.count("trainer.lr is called trainer.learning_rate") == 1


def test_an_old_name_stands_in_an_old_run(renamed, trained, tmp_path, capfd):
    run = older(trained, tmp_path / "old", ["trainer.learning_rate"])
    values = config.read_values(run / "config.yaml")
    values["trainer"]["lr"] = 0.125
    (run / "config.yaml").write_text(config.values_to_yaml(values))
    assert build_spec_from_values(config.read_run(run / "config.yaml")).trainer.learning_rate == 0.125
    assert "trainer.lr is called trainer.learning_rate since 0.1.0" in capfd.readouterr().err


def _values(*overrides):
    from peftrun.composition import compose

    return config.resolve_values(compose.compose_run(overrides).cfg)


def _below_none(values, key):
    *path, last = key.split(".")
    for part in path:
        values = values.get(part) or {}
    return last not in values
