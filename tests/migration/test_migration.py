"""The guides for those who come from other tools hold for those tools' own examples: every key is told, and its value arrives."""

import dataclasses
import json
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import translate
import yaml
from cases import NOT_INSTALLED, cases, where_installed

import peftrun
from peftrun.config import override_syntax, paths, shorthand
from peftrun.config import values as config
from peftrun.config.peers import tables
from peftrun.config.schema import peft_fields
from peftrun.config_tools.peer_import import importer, key_rules, translation
from peftrun.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / ".mkdocs"))
import guide_tables

PEERS = yaml.safe_load((Path(__file__).parent / "peers.yaml").read_text())
TOOLS = ("axolotl", "llama-factory", "trl")
KEYS = [(tool, key) for tool in TOOLS for key in translate.tables(tool)["mapped"]]
PACKAGES = {"device=deepspeed": "deepspeed", "trainer.use_liger_kernel=true": "liger_kernel"}
OPTIONS = (
    "lora=oft",
    "lora=vera",
    "lora=boft",
    "lora=adalora",
    "lora=fourierft",
    "task=dpo",
    "task=kto",
    "task=grpo",
    "task=reward",
    "device=auto",
    "tracker=wandb",
    "tracker=mlflow",
)
# The same facts under the three tools' names; a test of the tables must not read the tables.
NAMES: dict[str, dict[str, str]] = {
    "axolotl": {
        "model": "base_model", "rank": "lora_r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rate": "learning_rate",
        "batch": "micro_batch_size", "accumulation": "gradient_accumulation_steps", "epochs": "num_epochs", "length": "sequence_len",
        "schedule": "lr_scheduler", "packing": "sample_packing", "decay": "weight_decay",
    },
    "llama-factory": {
        "model": "model_name_or_path", "rank": "lora_rank", "alpha": "lora_alpha", "dropout": "lora_dropout", "rate": "learning_rate",
        "batch": "per_device_train_batch_size", "accumulation": "gradient_accumulation_steps", "epochs": "num_train_epochs",
        "length": "cutoff_len", "schedule": "lr_scheduler_type", "packing": "packing", "decay": "weight_decay",
    },
}  # fmt: skip
NAMES["trl"] = NAMES["llama-factory"] | {"rank": "lora_r", "length": "max_length"}
LEFT_OUT: dict[str, dict[str, Any]] = {
    "axolotl": {"batch": 1, "accumulation": 1, "epochs": 1, "length": 512, "schedule": "cosine", "packing": False},
    "llama-factory": {"rank": 8, "dropout": 0, "batch": 8, "accumulation": 1, "rate": 5e-5, "epochs": 3, "length": 2048},
    "trl": {"rank": 16, "alpha": 32, "dropout": 0.05, "batch": 8, "accumulation": 1, "rate": 2e-5, "epochs": 3, "length": 1024},
}  # fmt: skip
EVERYWHERE = {"dropout": 0, "schedule": "linear", "packing": False, "decay": 0}
QUANTIZATION = {"load_in_4bit": "nf4", "load_in_8bit": "int8", "quantization_bit": "nf4"}
OPTIMIZERS = {"adamw_bnb_8bit": "adamw_8bit", "adamw_torch_4bit": "adamw_8bit"}
PREFERENCES = ("dpo", "orpo", "kto", "rm")
BETAS = {"rl_beta", "orpo_alpha", "pref_beta", "beta"}
BY_HAND_ALONE = {  # what no experiment can say
    "resume_from_checkpoint", "auto_resume_from_checkpoints", "eval_dataset", "export_dir", "batch_size", "reward_funcs", "chat_template", "reward_model_name_or_path",
}  # fmt: skip


def named(peer: dict[str, Any]) -> str:
    return peer["source"].partition("@")[0].rpartition("examples/")[2].rpartition("recipes/")[2]


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder with the files that configs name; each dataset of LLaMA-Factory is the same 2000 rows."""
    names = {name.strip() for peer in PEERS for name in str(peer["keys"].get("dataset", "")).split(",")}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(
        json.dumps({name: {"file_name": "rows.jsonl"} for name in names})
    )
    for file in (
        "data/rows.jsonl",
        "alpaca.json",
        "deepspeed_configs/zero2.json",
        "examples/deepspeed/ds_z3_config.json",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}\n" * (2000 if file == "data/rows.jsonl" else 1))
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(overrides: list[str]) -> Any:
    """The run of these overrides; what needs a package that is not here is refused with its name, and then left out."""
    lacking = [one for one in overrides if one in PACKAGES and find_spec(PACKAGES[one]) is None]
    for one in lacking:
        with pytest.raises(ConfigError, match=PACKAGES[one]) as refused:
            peftrun.load(*overrides)
        assert all(NOT_INSTALLED in line for line in refused.value.lines), refused.value.lines
    left = [one for one in overrides if one not in lacking]
    with where_installed():
        return peftrun.load(*left)


def expected(tool: str, keys: dict[str, Any]) -> dict[str, Any]:
    """What the run must be, read straight off their keys."""
    found = EVERYWHERE | LEFT_OUT[tool]
    found |= {fact: keys[name] for fact, name in NAMES[tool].items() if name in keys}
    found.setdefault("alpha", 2 * found["rank"])
    found["length"] = keys.get("max_seq_length", found["length"])
    found["packing"] = found["packing"] or keys.get("stage") == "pt"
    found["warmup"] = keys.get("warmup_ratio", keys.get("warmup_steps", 0))
    found["quantization"] = next((name for key, name in QUANTIZATION.items() if keys.get(key)), None)
    found["optim"] = _optimizer(tool, keys)
    found["targets"] = _targets(keys)
    if {keys.get("rl"), keys.get("stage"), keys.get("command")} & set(PREFERENCES):
        found["dropout"] = 0
    if keys.get("stage") == "kto":  # needs two rows a batch
        found |= {"batch": 2 * found["batch"], "accumulation": found["accumulation"] // 2}
    return found


def _optimizer(tool: str, keys: dict[str, Any]) -> str:
    asked = keys.get("optimizer", keys.get("optim", "adamw_torch_fused" if tool == "axolotl" else "adamw_torch"))
    return OPTIMIZERS.get(asked, asked)


def _targets(keys: dict[str, Any]) -> list[str] | str:
    named = keys.get("lora_target_modules", keys.get("lora_target", "all"))
    if keys.get("lora_target_linear") or named == "all":
        return "all-linear"
    return named.split(",") if isinstance(named, str) else named


def facts_of(spec: Any) -> dict[str, Any]:
    trainer, lora = spec.trainer, spec.lora
    return {
        "model": spec.model.name_or_path, "quantization": spec.model.quantization, "rate": trainer.learning_rate,
        "batch": trainer.per_device_train_batch_size, "accumulation": trainer.gradient_accumulation_steps, "epochs": trainer.num_train_epochs,
        "length": spec.task.max_length, "schedule": trainer.lr_scheduler_type, "packing": trainer.packing, "decay": trainer.weight_decay,
        "warmup": trainer.warmup_steps, "optim": trainer.optim,
        **({"rank": lora.r, "alpha": lora.lora_alpha, "dropout": lora.lora_dropout, "targets": lora.target_modules} if lora.method == "lora" else {}),
    }  # fmt: skip


@cases("peer", PEERS, ids=named)
def test_every_key_of_a_peer_is_told(peer):
    mapped = translate.tables(peer["tool"])["mapped"]
    unknown = [key for key in [*translate.keys_of(peer["keys"]), *peer.get("empty", [])] if key not in mapped]
    assert not unknown


def import_peer(peer: dict[str, Any], room: Path) -> tuple[importer.ImportedExperiment, Path]:
    """What `action=import` makes of a peer's keys, and the folder of the experiment."""
    folder = room / named(peer).replace("/", "_")
    folder.mkdir()
    source = folder / "source.yaml"
    source.write_text(yaml.safe_dump(peer["keys"]))
    path = folder / "experiment" / "theirs.yaml"
    imported = importer.import_config(source, peer["tool"], path, [], [])
    assert not imported.faults
    path.parent.mkdir()
    path.write_text(imported.text)
    return imported, folder


def load_imported(folder: Path, *typed: str) -> Any:
    """The run of the experiment; some packages that are not here are left out, where others are missing the case is skipped."""
    try:
        return peftrun.load("experiment=theirs", *typed, config_dirs=[folder])
    except ConfigError as refused:
        assert not typed and all(NOT_INSTALLED in line for line in refused.lines), refused.lines
        keys = [line.partition("=")[0] for line in refused.lines]
        usual = {"device.strategy": "device=auto", "trainer.use_liger_kernel": "trainer.use_liger_kernel=false"}
        if not usual.keys() >= set(keys):
            pytest.skip(refused.lines[0])
        return load_imported(folder, *(usual[key] for key in keys))


@cases("peer", PEERS, ids=named, every=5)
def test_a_peers_config_becomes_the_run_that_it_describes(peer, room):
    imported, folder = import_peer(peer, room)
    overrides = (override_syntax.quote_override(key, value) for key, value in imported.settings.items())
    assert sorted(map(shorthand.escape_line_ends, overrides)) == sorted(shlex.split(peer["overrides"]))
    arrived, asked = facts_of(load_imported(folder)), expected(peer["tool"], peer["keys"])
    wrong = {fact: (value, asked[fact]) for fact, value in arrived.items() if value != asked[fact]}
    if peer["tool"] == "trl" and "lora_target_modules" not in peer["keys"]:
        wrong.pop("targets", None)  # told: PEFT's own choice there, every linear layer here
    assert not wrong
    assert (arrived.get("rank") is None) == _full(peer)


def _full(peer: dict[str, Any]) -> bool:
    return peer["tool"] == "trl" and peer["keys"]["command"] == "sft" and not peer["keys"].get("use_peft")


@cases("peer", [peer for peer in PEERS if BETAS & {*peer["keys"]}], ids=named)
def test_preferences_keep_their_objective(peer, room):
    _, folder = import_peer(peer, room)
    assert {load_imported(folder).task.objective.beta} == {peer["keys"][key] for key in BETAS & {*peer["keys"]}}


def test_the_guides_show_the_tables_of_the_command():
    for tool in guide_tables.TOOLS:
        text = (translate.GUIDES / f"from-{tool}.md").read_text()
        assert guide_tables.render_guide(tool, text) == text, "python docs/.mkdocs/guide_tables.py writes them"
        rows = tables.read_table(tool).rows
        known = {key for owner, key in key_rules.CONVERTERS if owner in ("", tool)}
        assert {key for key, row in rows.items() if row.by_hand} <= known | BY_HAND_ALONE


@pytest.fixture(scope="module")
def known_keys() -> set[str]:
    """Every key that some option has."""
    beside = ["task.data.source=hub", "task.data.path=ORG/ROWS"]
    found = {"hydra.run.dir", "action.resume", *paths.GROUPS}
    for option in OPTIONS:
        with where_installed():
            found |= set(config.flatten_keys(dataclasses.asdict(peftrun.load(option, *beside))))
    found |= {f"lora.{name}" for method in ("lora", "boft") for name in peft_fields.get_accepted_fields(method)}
    found |= {f"lora.lora_ga_config.{name}" for name in ("direction", "scale", "stable_gamma")}
    return found | {"task.template_arguments", "trainer.lr_scheduler_kwargs", "task.data.mixture", "lora"}


@cases("tool", guide_tables.TOOLS)
def test_every_override_in_the_tables_has_a_key(tool, known_keys):
    guide = (translate.GUIDES / f"from-{tool}.md").read_text()
    spans = [span for line in guide.splitlines() if line.startswith("|") for span in re.findall(r"`([^`]+)`", line)]
    typed = {part.partition("=")[0] for span in spans if "=" in span for part in shlex.split(span) if "=" in part}
    wrong = {
        key for key in typed if key not in known_keys and not key.startswith("action.") and ".arguments." not in key
    }
    assert not wrong - {"adapter", "target"}


def commands_of(tool: str) -> list[list[str]]:
    guide = (translate.GUIDES / f"from-{tool}.md").read_text()
    blocks = re.findall(r"^```\n(peftrun .*?)```", guide, re.DOTALL | re.MULTILINE)
    commands = [shlex.split(block.replace("\\\n", " "))[1:] for block in blocks]
    return [command for command in commands if command[0] != "action=import"]


@cases("tool", TOOLS)
def test_the_worked_example_is_a_valid_run(tool, room):
    (command,) = commands_of(tool)
    assert built(command).action.name == "train"


def test_the_worked_experiment_is_the_worked_command(room):
    text = (translate.GUIDES / "from-axolotl.md").read_text()
    found = re.search(r"```yaml\n(# @package _global_\n.*?)```", text, re.DOTALL)
    assert found
    (room / "ours" / "experiment").mkdir(parents=True)
    (room / "ours" / "experiment" / "our_talks.yaml").write_text(found[1])
    with where_installed():
        by_file = peftrun.load("experiment=our_talks", config_dirs=[room / "ours"])
    assert by_file == peftrun.load(*commands_of("axolotl")[0])


def test_a_value_that_a_table_does_not_know_is_no_guess():
    with pytest.raises(KeyError):
        translate.overrides_in(translate.tables("axolotl")["mapped"]["rl"], "simpo")
    assert translation.find_case(tables.read_table("axolotl").rows["rl"].to, "simpo") is None
