"""action=import: another tool's config becomes an experiment, and each of its keys is accounted for."""

import json

from cases import NOT_INSTALLED, cases
from faults import check_refused

import peftrun
from peftrun.config_tools.peer_import import importer
from peftrun.config_tools.peer_import.translation import CARRIED, NO_COUNTERPART, NOT_NEEDED
from peftrun.errors import ConfigError

AXOLOTL = """
base_model: org/base
load_in_4bit: true
adapter: qlora
lora_r: 16
lora_target_linear: true
lora_target_modules: [q_proj]
datasets:
  - {path: rows.jsonl, type: chat_template, field_messages: talk}
  - {path: org/other, type: chat_template, field_messages: talk}
val_set_size: 0.1
evals_per_epoch: 2
sequence_len: 2048
micro_batch_size: 1
gradient_accumulation_steps: 5
warmup_ratio: 0.1
learning_rate: 2e-4
wandb_project:
optimizer: muon
chat_template: chatml
plugins: [a.b.C]
no_such_key: 1
"""
LLAMA_FACTORY = """
model_name_or_path: org/base
stage: sft
finetuning_type: lora
lora_rank: 4
lora_target: q_proj,v_proj
dataset: ours,theirs
cutoff_len: 128
template: llama3
"""
INFO = {"ours": {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "talk"}}}
SWIFT = """
# trains on a file
MODEL=org/base
NPROC_PER_NODE=2 \\
swift sft --model $MODEL --tuner_type lora --dataset data/rows.jsonl#20 --lora_rank 8 \\
    --target_modules all-linear embed_tokens --per_device_train_batch_size 2 --gradient_accumulation_steps $(expr 16 / 2) --learning_rate 1e-4 --output_dir $OUT
"""
TRL = "trl dpo --model_name_or_path org/base --dataset_name org/pairs --use_peft --lora_r 32 --lora_dropout 0.1 --beta 0.2 --learning_rate=5e-6"
ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": True, "exclude_modules": None, "layers_pattern": None, "base_model_name_or_path": "org/base", "inference_mode": True, "peft_version": "0.21.0"}  # fmt: skip
IMPORTS = [
    ("axolotl.yml", AXOLOTL, {
        "model.name_or_path": "org/base", "model.quantization": "nf4", "lora.r": 16, "lora.target_modules": "all-linear", "task.data.path": "rows.jsonl", "task.loss_on": "assistant",
        "task.messages_column": "talk", "task.data.num_validation_rows": 4, "trainer.eval_steps": 4, "task.max_length": 2048, "trainer.warmup_steps": 0.1,
        "trainer.learning_rate": 2e-4, "trainer.num_train_epochs": 1, "task.data.mixture": None, "trainer.optim": "adamw_torch",
    }, {"lora_target_modules": NOT_NEEDED, "datasets": NO_COUNTERPART, "optimizer": NO_COUNTERPART, "no_such_key": NO_COUNTERPART, "plugins": NO_COUNTERPART, "chat_template": CARRIED}),
    ("factory.yaml", LLAMA_FACTORY, {
        "lora.r": 4, "lora.lora_alpha": 8, "lora.target_modules": ["q_proj", "v_proj"], "task.data.path": "data/rows.jsonl", "task.messages_column": "talk", "task.loss_on": "assistant",
        "trainer.per_device_train_batch_size": 8, "trainer.gradient_checkpointing": True, "trainer.warmup_steps": 0,
    }, {"dataset": NO_COUNTERPART, "template": NOT_NEEDED}),
    ("train.sh", SWIFT, {
        "model.name_or_path": "org/base", "task.data.path": "data/rows.jsonl", "task.data.num_train_rows": 20, "device.strategy": "ddp", "device.num_processes": 2,
        "trainer.gradient_accumulation_steps": 8, "lora.target_modules": "all-linear", "trainer.weight_decay": 0.1, "trainer.adam_beta2": 0.95,
    }, {"target_modules": NO_COUNTERPART, "output_dir": NO_COUNTERPART}),
    ("dpo.sh", TRL, {
        "task.objective.name": "dpo", "task.objective.beta": 0.2, "task.data.source": "hub", "lora.r": 32, "lora.lora_alpha": 32, "lora.lora_dropout": 0.0, "trainer.learning_rate": 5e-6,
    }, {"lora_dropout": NOT_NEEDED, "use_peft": CARRIED}),
    ("adapter_config.json", json.dumps(ADAPTER), {
        "lora.r": 4, "lora.lora_alpha": 8, "lora.target_modules": ["q_proj"], "lora.use_dora": True, "model.name_or_path": "org/base",
    }, {"inference_mode": NOT_NEEDED}),
]  # fmt: skip


def write_rows(folder):
    (folder / "data").mkdir()
    (folder / "data" / "dataset_info.json").write_text(json.dumps(INFO))
    row = json.dumps({"talk": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n"
    for file in (folder / "rows.jsonl", folder / "data" / "rows.jsonl"):
        file.write_text(row * 40)


def get_value(spec, key):
    for name in key.split("."):
        spec = getattr(spec, name)
    return spec


def load_experiment(path, folder):
    rows = [] if "    path:" in path.read_text() else ["task.data.path=rows.jsonl"]
    try:
        return peftrun.load(f"experiment={path.stem}", *rows, config_dirs=[folder])
    except ConfigError as refused:  # quantization and trackers need packages that may not be here
        assert all(NOT_INSTALLED in line for line in refused.lines), refused.lines
        return peftrun.load(f"experiment={path.stem}", "model.quantization=null", *rows, config_dirs=[folder])


@cases("name, text, values, verdicts", IMPORTS)
def test_a_config_of_another_tool_becomes_an_experiment(name, text, values, verdicts, tmp_path):
    write_rows(tmp_path)
    (tmp_path / name).write_text(text)
    imported = importer.import_config(tmp_path / name, None, tmp_path / "experiment" / "mine.yaml", ["seed=7"], [])
    assert not imported.faults
    imported.path.parent.mkdir()
    imported.path.write_text(imported.text)
    spec = load_experiment(imported.path, tmp_path)
    found = {key: get_value(spec, key) for key in values if key != "model.quantization"}
    assert found == {key: value for key, value in values.items() if key != "model.quantization"} and spec.seed == 7
    assert "model.quantization" not in values or f"quantization: {values['model.quantization']} #" in imported.text
    last = {line.key: line.verdict for line in imported.lines}
    assert {key: last[key] for key in verdicts} == verdicts
    assert all(line.note for line in imported.lines if line.verdict != CARRIED)


def test_rows_that_are_not_here_yet_stay_named(tmp_path):
    (tmp_path / "run.sh").write_text(
        "swift rlhf --rlhf_type grpo --model org/base --dataset far/rows.jsonl#100 --reward_funcs format"
    )
    imported = importer.import_config(tmp_path / "run.sh", None, tmp_path / "experiment" / "mine.yaml", [], [])
    assert (
        imported.settings["task.data.path"] == "far/rows.jsonl" and imported.settings["task.data.num_train_rows"] == 100
    )
    (fault,) = imported.faults  # and none of the number of answers, whose default fits into a step
    assert "task.data.path=far/rows.jsonl: there is no such file" in fault
    assert imported.settings["trainer.gradient_accumulation_steps"] % 4 == 0


def test_a_chat_template_of_the_tool_s_own_does_not_stay(tmp_path, monkeypatch):
    """Its name is no file of the user that may be elsewhere."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    (tmp_path / "axolotl.yml").write_text(AXOLOTL.replace("chat_template: chatml", "chat_template: falcon_h1"))
    imported = importer.import_config(tmp_path / "axolotl.yml", None, tmp_path / "experiment" / "mine.yaml", [], [])
    assert not imported.faults and "model.chat_template" not in imported.settings
    (line,) = (line for line in imported.lines if line.key == "chat_template")
    assert line.verdict == NO_COUNTERPART and "no template has this name" in line.note


def test_an_import_says_what_became_of_each_key(tmp_path, cli):
    write_rows(tmp_path)
    (tmp_path / "axolotl.yml").write_text(AXOLOTL)
    done = cli("action=import", "from=axolotl.yml", "action.output=experiment/ours.yaml", "trainer.max_steps=3")
    assert done.code == 0, done.err
    assert (
        "lora_r: 16" in done.out
        and "no counterpart" in done.out
        and "peftrun --config-dir . experiment=ours" in done.out
    )
    assert "4 keys have no counterpart" in done.err and "no_such_key" in done.err
    first, what, command = (tmp_path / "experiment" / "ours.yaml").read_text().splitlines()[:3]
    assert first == "# @package _global_" and "axolotl.yml" in what and command.endswith("experiment=ours")
    assert "max_steps: 3" in (tmp_path / "experiment" / "ours.yaml").read_text()
    assert done.record()["import"]["counts"][NO_COUNTERPART] == 4


REFUSED = [
    ([], ("action.source", "from=axolotl.yaml")),
    (["from=nowhere.yaml"], ("action.source=nowhere.yaml", "no such file")),
    (["from=other.yaml"], ("action.source=other.yaml", "action.tool=")),
    (["from=list.yaml"], ("action.source=list.yaml", "mapping")),
    (["from=broken.json"], ("action.source=broken.json", "cannot be read")),
    (["from=other.sh"], ("action.source=other.sh", "no training command")),
    (["from=axolotl.yml", "action.output=taken.yaml"], ("action.output=taken.yaml", "never overwritten")),
    (["from=axolotl.yml", "action.output=mine.yml"], ("action.output=mine.yml", "action.output=mine.yaml")),
    (["from=axolotl.yml", "action.output=qlora.yaml"], ("action.output=qlora.yaml", "my_qlora.yaml")),
    (["from=axolotl.yml", "action.tool=torchtune"], ("action.tool=torchtune", "axolotl")),
]  # fmt: skip


@cases("words, told", REFUSED)
def test_what_cannot_be_imported_is_one_line(words, told, tmp_path, cli):
    files = {"axolotl.yml": AXOLOTL, "other.yaml": "a: 1", "list.yaml": "[1, 2]", "broken.json": "{", "other.sh": "ls", "taken.yaml": ""}  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    check_refused(cli, tmp_path, ["action=import", *words], told)
