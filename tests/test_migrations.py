"""Old names of keys, and configs that are older than some keys, mean what they meant."""

import copy
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from cases import cases
from conftest import TINY_STEPS
from faults import check_failed
from team_packages import write

import peftrun
from peftrun.checks import validation
from peftrun.composition.composer import Composer
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import migrations, shorthand
from peftrun.config import values as config
from peftrun.config.paths import config_dir
from peftrun.config.schema import run as schema
from peftrun.config_tools import lint
from peftrun.config_tools.provenance import trace_origins
from peftrun.planning import throughput

ADDED_SINCE = [
    "device.deterministic",
    "params",
    "template",
    "trainer.padding_free",
    "task.loss_on",
    "lora.lora_fa",
    "device.strategy",
]


@pytest.fixture
def renamed(monkeypatch):
    """Some keys and options are as if they had been renamed."""
    keys = {
        "trainer.lr": "trainer.learning_rate",
        "dtype": "device.dtype",
        "action.before": "action.evaluate_before",
        "task.data.blend": "task.data.mixture",
        "task.data.mixture.*.text": "task.data.mixture.*.prompt_template",
        "knobs": "params",
        "template.knobs": "template.params",
    }
    options = {("lora", "low"): "lora_fa", ("trainer", "short"): "smoke", ("experiment", "fast"): "quick_look"}
    for table, names in {"RENAMED": keys, "RENAMED_OPTIONS": options}.items():
        monkeypatch.setattr(migrations, table, {old: (new, "0.1.0") for old, new in names.items()})
    monkeypatch.setattr(migrations, "RENAMED_VALUES", {"action.before": {"yes": True, None: False}})
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
    (where / "config.yaml").write_text(config.values_to_yaml(migrations.restore_keys(values)))
    return where


def test_every_key_that_is_added_exists_and_has_a_value_that_is_allowed():
    for owner, keys in {None: migrations.ADDED, **migrations.ADDED_TO}.items():
        group = (
            {"lora.method": "lora", "task.objective.name": "task", "action.name": "action"}.get(owner[0])
            if owner
            else None
        )
        values = _values(*([f"{group}={owner[1]}"] if group else []))
        old = without(values, [key for key in keys if not _below_none(values, key)])
        found, lines = migrations.upgrade_values(old)
        assert len(lines) == 1 and all(f"{key}=" in lines[0] for key in keys), lines
        assert config.flatten_keys(found).keys() == config.flatten_keys(values).keys()


def type_of(key):
    group, *path = [name for name in key.split(".") if name != "*"]
    return validation._resolve_key_type(validation._get_types(schema.RunSpec).get(group), path, None)


def test_every_renamed_key_is_one_of_today_and_in_the_guide():
    names = [(old, new) for old, (new, _) in migrations.RENAMED.items()]
    options = [(f"{group}={old}", f"{group}={new}") for (group, old), (new, _) in migrations.RENAMED_OPTIONS.items()]
    guide = (Path(__file__).parents[1] / "docs" / "teams.md").read_text()
    assert re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| [\d.]+ \|$", guide, re.MULTILINE) == [*names, *options]
    for old, new in names:
        filled = old.replace("*", "a"), new.replace("*", "a")
        assert migrations.rename_key(filled[0]) == (filled[1], [old]) and migrations.rename_key(filled[1])[1] == []
        assert type_of(new) is not None and type_of(old) is None, new
    for group, name in migrations.RENAMED_OPTIONS:
        files = [config_dir() / group / f"{option}.yaml" for option in (name, migrations.rename_option(group, name))]
        assert [file.is_file() for file in files] == [False, True]


def test_an_old_run_means_what_it_did(trained, tmp_path, capfd):
    run = older(trained, tmp_path / "old")
    values = config.read_run(run / "config.yaml")
    told = capfd.readouterr().err
    assert "device.deterministic=false" in told and "task.kind is task.type" in told and told.count("\n") == 2
    spec = build_spec_from_values(values)
    assert spec.device.deterministic is False and spec.params == {} and spec.template is None
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


@cases(
    "typed, today",
    [
        ("trainer.lr=0.5", "trainer.learning_rate=0.5"),
        ("++dtype=float32", "++device.dtype=float32"),
        ("~dtype", "~device.dtype"),
        ("~trainer.lr=0.5", "~trainer.learning_rate=0.5"),
        ("trainer.lr=0.5,1.0", "trainer.learning_rate=0.5,1.0"),
        ("before=yes", "action.evaluate_before=true"),
        ("action.before=yes,null", "action.evaluate_before=true,false"),
        ("+action={before: yes}", "+action={evaluate_before: true}"),
        ("trainer={lr: 0.5, optim: sgd}", "trainer={learning_rate: 0.5, optim: sgd}"),
        ("task.data.blend.faq.text=A", "task.data.mixture.faq.prompt_template=A"),
        (
            "task.data.blend={faq: {path: a, text: 'text: {text}'}, two: {text: b}}",
            "task.data.mixture={faq: {path: a, prompt_template: 'text: {text}'}, two: {prompt_template: b}}",
        ),
        ("+task={data: {blend: {faq: {text: A}}}}", "+task={data: {mixture: {faq: {prompt_template: A}}}}"),
        ("lora=low", "lora=lora_fa"),
        ("lora=dora,low", "lora=dora,lora_fa"),
        ("lora=choice(dora,low)", "lora=choice(dora,lora_fa)"),
        ("experiment=fast", "experiment=quick_look"),
        ("knobs.rows=A", "params.rows=A"),
        ("task.max_length=${knobs.rank}", "task.max_length=${params.rank}"),
        ("task.data.path='${oc.env:HOME}/${knobs.name}'", "task.data.path='${oc.env:HOME}/${params.name}'"),
        ("trainer.warmup_steps=${.lr}", "trainer.warmup_steps=${trainer.learning_rate}"),
        ("hydra.sweeper.params.trainer.lr=range(1,3)", "hydra.sweeper.params.trainer.learning_rate=range(1,3)"),
        ("lora.init_lora_weights=low", "lora.init_lora_weights=low"),
        ("knobs", "knobs"),  # no override, but the value of a flag
    ],
)
def test_an_old_name_is_read_in_every_form_that_is_typed(renamed, typed, today):
    overrides, lines = shorthand.expand_overrides([typed])
    assert overrides == [today]
    assert (lines == []) == (typed == today) and len(lines) == len({*lines})
    assert all(line.endswith("since 0.1.0; carried over") for line in lines)


def test_an_old_name_is_typed(renamed, cli):
    shown = cli("trainer.lr=0.5", "++dtype=float32", "trainer=short", "--cfg", "job")
    assert shown.code == 0, shown.err
    assert "learning_rate: 0.5" in shown.out and "dtype: float32" in shown.out and "max_steps: 3" in shown.out
    for line in ("trainer.lr is called trainer.learning_rate", "trainer=short is called trainer=smoke"):
        assert shown.err.count(f"{line} since 0.1.0; carried over") == 1
    assert peftrun.load("trainer.lr=0.25").trainer.learning_rate == 0.25


@pytest.fixture
def old_team(renamed, tmp_path):
    """Files of a team as they were before the renames."""
    team = tmp_path / "team"
    write(team, "trainer/ours", "defaults: [short, _self_]\nlr: 0.5\nwarmup_steps: ${.lr}\n")
    write(team, "lora/ours", "defaults: [low, _self_]\nr: 2\n")
    body = "trainer: {lr: 0.25}\ndtype: float32\ntask: {data: {path: '${knobs.rows}', blend: {a: {path: b.jsonl, weight: 1.0, text: T}}}}\n"
    options = "defaults: [override /task: instruction, override /lora: low, override /trainer: ours]\n"
    knobs = "template: {name: ours, version: '1', knobs: {rows: {type: path, help: h}}}\nknobs: {rows: '???'}\n"
    write(team, "experiment/ours", options + knobs + body)
    write(team, "experiment/more", "defaults: [fast, _self_]\nlora: {r: 4}\n")
    return team


def test_an_old_name_stands_in_a_file_of_a_team(old_team, tmp_path, capfd):
    (tmp_path / "b").touch()
    load = partial(peftrun.load, config_dirs=[old_team])
    assert load("trainer=ours").trainer.warmup_steps == 0.5 and load("trainer=ours").trainer.max_steps == 3
    assert load("lora=ours").lora.lora_fa
    assert load("experiment=more").lora.r == 4
    told = capfd.readouterr().err
    for line in ("trainer.lr is called", "trainer=short is called", "lora=low is called", "experiment=fast is called"):
        assert told.count(line) == 1
    assert f"{old_team}/lora/ours.yaml: lora=low is called lora=lora_fa since 0.1.0; carried over" in told
    spec = load("experiment=ours", f"knobs.rows={tmp_path / 'b'}", f"task.data.mixture.a.path={tmp_path / 'b'}")
    assert (spec.trainer.learning_rate, spec.device.dtype, spec.lora.lora_fa) == (0.25, "float32", True)
    assert spec.task.data.path == str(tmp_path / "b") and spec.task.data.mixture["a"].prompt_template == "T"
    told = capfd.readouterr().err
    assert (
        told.count("trainer.lr is called") == 0
        and len([line for line in told.splitlines() if "knobs is called params" in line and "template" not in line])
        == 1
    )  # once in a process


@cases(
    "overrides, rate",
    [
        (("trainer=ours", "trainer.learning_rate=1"), 1),  # a typed key wins over a file, whatever either calls it
        (("trainer=ours", "trainer.lr=1"), 1),
        (("experiment=rate", "trainer=ours"), 0.25),  # an experiment over an option
        (("experiment=rate", "trainer=ours", "trainer.learning_rate=1"), 1),
        (("experiment=both",), 0.75),  # today's name over the old one
        (("trainer=ours", "experiment=last", "trainer.lr=2", "trainer.learning_rate=1"), 1),
    ],
)
def test_an_old_name_has_the_precedence_of_its_place(old_team, overrides, rate, cli):
    write(old_team, "experiment/rate", "trainer: {lr: 0.25}\n")
    write(old_team, "experiment/both", "trainer: {learning_rate: 0.75, lr: 0.25}\n")
    write(old_team, "experiment/last", "trainer: {learning_rate: 0.125}\n")
    assert peftrun.load(*overrides, config_dirs=[old_team]).trainer.learning_rate == rate
    shown = cli("--config-dir", str(old_team), *overrides, "--cfg", "job", "-p", "trainer.learning_rate")
    assert float(shown.out) == rate, shown.err
    origins = trace_origins(Composer([str(old_team)]), shorthand.expand_overrides(overrides)[0])
    assert origins.values["trainer"]["learning_rate"] == rate
    assert origins.sources["trainer.learning_rate"].kind in ("file", "typed")


def test_an_old_name_is_found_by_the_check(old_team, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.jsonl").touch()
    write(old_team, "trainer/short", "lr: 1.0\n")
    write(old_team, "trainer/broken", "defaults: [default, _self_]\nlr: fast\n")
    found = lint.lint_search_path([str(old_team)], None)
    notes = {
        (finding.what, finding.line.partition(" is called")[0]) for finding in found if "is called" in finding.line
    }
    assert notes >= {
        ("trainer=ours", "trainer.lr"),
        ("trainer=ours", "trainer=short"),
        ("lora=ours", "lora=low"),
        ("experiment=ours", "knobs"),
        ("experiment=ours", "template.knobs"),
        ("experiment=ours", "task.data.mixture.*.text"),
        ("experiment=more", "experiment=fast"),
    }
    assert all(finding.verdict == "note" for finding in found if "is called" in finding.line)
    faults = [finding for finding in found if finding.verdict == "fault"]
    assert {finding.what for finding in faults} == {"trainer=short", "trainer=broken"}, faults
    assert any("trainer=smoke is found first" in finding.line for finding in faults)
    assert any(finding.where.endswith("broken.yaml:4") for finding in faults), faults
    assert capfd.readouterr().err == ""


def test_an_old_name_stands_in_an_old_run(renamed, trained, tmp_path, capfd):
    run = older(trained, tmp_path / "old", ["trainer.learning_rate"])
    values = config.read_values(run / "config.yaml")
    values["trainer"]["lr"] = 0.125
    (run / "config.yaml").write_text(config.values_to_yaml(values))
    assert build_spec_from_values(config.read_run(run / "config.yaml")).trainer.learning_rate == 0.125
    assert "renamed since that version: trainer.lr is trainer.learning_rate" in capfd.readouterr().err


def test_first_names_are_restored(renamed):
    values = {
        "trainer": {"lr": 1},
        "device": {},
        "action": {"before": None},
        "task": {"data": {"blend": {"a": {"text": 1}}}},
    }
    found, lines = migrations.rename_keys(values)
    assert found == {
        "trainer": {"learning_rate": 1},
        "device": {},
        "action": {"evaluate_before": False},
        "task": {"data": {"mixture": {"a": {"prompt_template": 1}}}},
    }
    assert len(lines) == 4 and migrations.restore_keys(found) == values


def _values(*overrides):
    from peftrun.composition import compose

    return config.resolve_values(compose.compose_run(overrides).cfg)


def _below_none(values, key):
    *path, last = key.split(".")
    for part in path:
        values = values.get(part) or {}
    return last not in values
