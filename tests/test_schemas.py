"""The JSON Schemas of the YAML files: they are those of the code, take every file that ships, and refuse what is wrong in one."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from cases import cases
from jsonschema import Draft7Validator
from language_server import LanguageServer
from omegaconf import OmegaConf
from referencing import Registry, Resource

from peftrun.config import paths
from peftrun.config.schema import peft_fields
from peftrun.config.schema import run as schema
from peftrun.config_tools.json_schema.launchers import OPTIONS
from peftrun.config_tools.json_schema.schemas import build_schemas
from peftrun.config_tools.json_schema.sources import (
    ACTIONS,
    METHODS,
    OBJECTIVES,
    TRACKERS,
    get_tag,
    list_action_options,
    list_method_options,
    list_tracker_options,
)
from peftrun.sweep.launcher import LAUNCHERS

CONF = paths.config_dir()
FILES = sorted(CONF.rglob("*.yaml"))
HEADER = "# yaml-language-server: $schema="
OUT_OF_DATE = "the schemas are not those of the code; run `make schemas`"
DESCRIBED_ABOVE = {
    f"experiment.json.allOf.else.{name}" for name in ("lora", "action", "tracker")
}  # any method, any action
GROUPS = {
    "model": schema.ModelSpec,
    "task": schema.TaskSpec,
    "trainer": schema.TrainerSpec,
    "device": schema.DeviceSpec,
}
WRONG = {  # group → what is at fault in a file of it
    "action": [
        "name: merge\nverfy: true",  # a typo
        "name: merge\nresume: null",  # another action's
        "name: merge\nverify: perhaps",
        "name: merge\ndtype: float8",
        "name: generate\ntop_p: 1.5",
        "name: trian",
        "defaults: [train]\nmeasured_steps: 3",  # plan's
    ],
    "model": ["name_or_pth: x", "trust_remote_code: 1", "quantization: nf5", "name_or_path: ''", "revision: 3"],
    "lora": [
        "defaults: [lora]\nlora_alhpa: 1",
        "defaults: [dora]\nboft_dropout: 0.1",
        "method: boft\nr: 8",
        "method: lora\nr: 0",
        "method: lora\nr: 2.5",
        "method: lora\nlora_dropout: 1",
        "method: lora\nbias: some",
        "method: lora\ninit_lora_weights: pisa",
        "method: lora\neva_config: {rho: 0.5}",
        "method: lroa",
        "defaults: [of_a_team]\nno_such_key: 1",
        "defaults: [of_a_team]\nr: eight",
        "defaults: lora",
    ],
    "task": [
        "type: casual_lm",
        "data: {path: x, shuffle: true}",
        "data: {num_train_rows: 0}",
        "objective: {name: dpo, beta: -1}",
        "objective: {name: dpo, epsilon: 0.2}",
        "metrics: [bleu, chr]",
        "max_length: 1",
        "label_names: [one]",
    ],
    "trainer": [
        "learning_rate: 0",
        "optim: adam",
        "max_stpes: 3",
        "packing: maybe",
        "save_steps: 1.5",
        "adam_beta2: 1.0",
    ],
    "tracker": [
        "name: mlfow",
        "name: mlflow\nprojct: x",
        "name: tensorboard\nuri: http://x",
        "name: wandb\nmode: on",
        "name: none\nproject: x",
    ],
    "device": ["type: gpu", "main_process_port: 70000", "num_processes: two", "max_memory: 4GiB", "deterministc: true"],
    "experiment": [
        "trainer: {learning_rat: 1.0}",
        "lr: 1.0",
        "seed: -1",
        "defaults: [{override /lora: boft}]\nlora: {r: 8}",
        "defaults: [{override /action: merge}]\naction: {resume: null}",
        "lora: {no_such_key: 1}",
        "params: {rank: [1]}",
        "template: {name: x, params: {rank: {type: number}}}",
        "defaults: [{'no such form /lora': x}]",
    ],
    "hydra-launcher": ["max_cells: 0", "max_cell: 1", "halving: 3", "cluster: lsf", "max_retries: -1"],
    "config": ["seeds: 1", "trainer: {max_steps: -2}", "allow_base_mismatch: 3"],
}
RIGHT = {
    "lora": [
        "r: ${seed}",
        "method: ???",
        "defaults: [of_a_team, _self_]\nr: 3\nboft_dropout: 0.1",
        "defaults: [lora]\nrank_pattern: {q_proj: '${seed}'}\ntarget_modules: ${params.targets}",
        "defaults: [{optional lora@_here_: dora}]",
        "{}",
    ],
    "task": [
        "data: {path: '${params.rows}', num_test_rows: '${params.held_out}'}\nobjective: {beta: 0.2}",
        "objective: null",
    ],
    "trainer": ["max_steps: ???", "learning_rate: 1", "save_total_limit: null"],
    "device": ["max_memory: {0: 6GiB, cpu: 4GiB}"],
    "experiment": [
        "defaults: [{override /lora: of_a_team}, {override /task: null}, _self_]\nlora: {boft_dropout: 0.1}",
        "defaults: [{override /lora: dora}]\nlora: {r: 3}\nparams: {rank: 3, rows: '???'}\nadapter: {one: a}\nhydra: {run: {dir: x}}",
        "template: {name: ours, version: '1.0', params: {rank: {type: int, help: Its rank.}}}",
    ],
    "config": ["adapter: outputs/train/RUN\nlora: {r: 3}"],
    "hydra-launcher": ["memory_limit: 6GiB\nhalving: {min_steps: 20, factor: 3}\nexecutor: {slurm_anything: 1}"],
}


@pytest.fixture(scope="module")
def generated():
    return build_schemas()


def validator(name: str) -> Draft7Validator:
    texts = {path.name: json.loads(path.read_text()) for path in paths.schemas_dir().glob("*.json")}
    registry = Registry().with_resources([(key, Resource.from_contents(one)) for key, one in texts.items()])
    return Draft7Validator(texts[f"{name}.json"], registry=registry)


def problems(name: str, text: str) -> list[str]:
    values = OmegaConf.to_container(OmegaConf.create(text))
    return [error.message for error in validator(name).iter_errors(json.loads(json.dumps(values)))]


def named(path: Path) -> Path:
    """The schema that a file names."""
    lines = [line for line in path.read_text().splitlines() if line.startswith(HEADER)]
    assert len(lines) == 1, f"{path}: name its schema in the third line: {HEADER}…"
    return (path.parent / lines[0].removeprefix(HEADER)).resolve()


def described(content: object, root: dict, where: str = "") -> dict[str, bool]:
    """Path → whether there is a description, of every property that a schema offers; conditions offer none."""
    if isinstance(content, list):
        return {key: one for item in content for key, one in described(item, root, where).items()}
    if not isinstance(content, dict):
        return {}
    found = {}
    for key, item in content.get("properties", {}).items():
        held = root["definitions"][item["$ref"].split("/")[-1]] if item.get("$ref", "").startswith("#") else item
        found[f"{where}.{key}"] = bool(held.get("description")) or ".json#" in held.get("$ref", "")
    inner = {key: item for key, item in content.items() if key != "if"}
    for key, item in inner.items():
        found |= described(item, root, f"{where}.{key}" if key not in ("properties", "definitions") else where)
    return found


def test_the_schemas_are_those_of_the_code(generated):
    files = {path.name: path.read_text() for path in paths.schemas_dir().iterdir()}
    assert files.keys() == generated.keys(), OUT_OF_DATE
    for name, text in generated.items():
        assert files[name] == text, f"{name}: {OUT_OF_DATE}"
        Draft7Validator.check_schema(json.loads(text))


def test_there_is_one_for_each_group_and_the_table_of_contents(generated):
    assert {name.removesuffix(".json") for name in generated} == {*paths.GROUPS, "config", "hydra-launcher"}


def test_they_are_made_alike_each_time(generated):
    assert build_schemas() == generated


@cases("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_each_file_names_its_schema_and_is_valid(path):
    folders = path.relative_to(CONF).parts[:-1]
    assert named(path) == (paths.schemas_dir() / f"{'-'.join(folders) or 'config'}.json").resolve()
    assert not problems(named(path).stem, path.read_text())
    lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
    assert lines[2].startswith(HEADER)


@cases("group, text", [(group, text) for group, texts in WRONG.items() for text in texts])
def test_what_is_wrong_is_refused(group, text):
    assert problems(group, text)


def test_wrong_files_were_tried_for_every_schema(generated):
    assert {f"{group}.json" for group in WRONG} == generated.keys()


@cases("group, text", [(group, text) for group, texts in RIGHT.items() for text in texts])
def test_what_is_partial_or_filled_in_later_is_taken(group, text):
    assert not problems(group, text)


def test_every_field_of_every_dataclass_is_a_key(generated):
    read = {name: json.loads(text) for name, text in generated.items()}
    for group, owner in GROUPS.items():
        names = {field.name for field in dataclasses.fields(owner)}
        assert names | {"defaults"} == read[f"{group}.json"]["properties"].keys()
    held = read["experiment.json"]["definitions"]
    parts = [
        schema.DataSpec,
        schema.LmEvalSpec,
        schema.MixtureSpec,
        schema.TemplateParamSpec,
        schema.TemplateSpec,
        *GROUPS.values(),
    ]
    for owner in [*ACTIONS, *METHODS, *OBJECTIVES, *TRACKERS, *parts]:
        names = {field.name for field in dataclasses.fields(owner)}
        names |= peft_fields.get_accepted_fields(get_tag(owner)).keys() if owner in METHODS else set()
        assert names == held[owner.__name__]["properties"].keys(), owner
    names = {field.name for field in dataclasses.fields(schema.RunSpec)}
    assert names | {"defaults", "hydra"} == read["experiment.json"]["properties"].keys()


def test_every_option_is_of_a_method_or_an_action_that_is_known():
    for options, owners, group in (
        (list_method_options(), METHODS, "lora"),
        (list_action_options(), ACTIONS, "action"),
        (list_tracker_options(), TRACKERS, "tracker"),
    ):
        assert options.keys() == {get_tag(owner) for owner in owners}
        assert sorted(name for names in options.values() for name in names) == paths.list_group_options(group)


def test_launchers_have_these_options():
    read = [OmegaConf.load(CONF / "hydra" / "launcher" / f"{name}.yaml") for name in LAUNCHERS]
    assert {key for one in read for key in one} - {"defaults"} == OPTIONS.keys()


def test_every_key_is_described(generated):
    found = {
        f"{name}{key}": one
        for name, text in generated.items()
        for key, one in described(json.loads(text), json.loads(text)).items()
    }
    assert len(found) > 700
    inner = re.compile(
        r"(_config|rope_parameters)\.anyOf\."
    )  # of configs inside a config, which the libraries describe as a whole
    assert {key for key, one in found.items() if not one and not inner.search(key)} == DESCRIBED_ABOVE


def test_hydra_takes_the_folder_for_no_group_that_is_offered():
    from peftrun.cli.completion.candidates import find_candidates
    from peftrun.cli.help import render_help

    assert "schemas" not in render_help(None)
    assert not [one for one in [*find_candidates("peftrun "), *find_candidates("peftrun .")] if "schemas" in one]


@pytest.mark.skipif(shutil.which("yaml-language-server") is None, reason="yaml-language-server (npm) is not installed")
def test_the_language_server_underlines_explains_and_completes(tmp_path):
    shutil.copytree(paths.schemas_dir(), tmp_path / ".schemas")
    (tmp_path / "lora").mkdir()
    head = f"# Ours.\n# peftrun lora=ours\n{HEADER}../.schemas/lora.json\ndefaults:\n  - dora\n  - _self_\n\n"
    with LanguageServer() as server:
        uri = server.open(
            tmp_path / "lora" / "ours.yaml", f"{head}r: 0\nlora_alhpa: 3\nloraplus_lr_ratio: 16.0\nlora_d\n"
        )
        lines = {item["range"]["start"]["line"] for item in server.diagnostics[uri]}
        assert {7, 8} <= lines and 9 not in lines
        shown = server.ask("textDocument/hover", uri, 9, 3)["contents"]["value"]
        assert "how many times the learning rate of A" in shown
        labels = {item["label"] for item in server.ask("textDocument/completion", uri, 10, 6)["items"]}
        assert "lora_dropout" in labels and "boft_dropout" not in labels
