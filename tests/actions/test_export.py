"""action=export: a folder that others load, light, nothing of this machine in it, and nothing exported that is not whole."""

import json
import shutil

import foreign_adapters
import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, cli_here
from faults import check_refused
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from test_startup import run as watched
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftrun.adapters import probes

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "config.yaml", "peftrun.json"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained):
    outcome = cli_here(tmp_path_factory.mktemp("exported"), "action=export", f"adapter={trained}", "base_model=me/tiny")
    assert outcome.code == 0, outcome.err
    return outcome


def answers(llama, adapter):
    tokenizer, base = AutoTokenizer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama)
    return probes.compute_probe_logits(PeftModel.from_pretrained(base, adapter).eval(), tokenizer)


def test_the_folder_loads_with_plain_peft_and_answers_the_same(exported, trained, llama):
    folder = exported.run_dir / "export"
    assert {path.name for path in folder.iterdir()} == FILES
    assert torch.equal(answers(llama, folder), answers(llama, trained / "adapter"))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/tiny"


def test_peftrun_loads_it_and_knows_its_base(cli, exported, llama, on_tiny):
    assert cli(*on_tiny(llama), "action=reload", f"adapter={exported.run_dir / 'export'}").code == 0


def test_nothing_of_this_machine_is_in_it(exported, trained, llama, data):
    for path in (exported.run_dir / "export").iterdir():
        content = path.read_bytes()
        for place in (trained, llama, data, llama.parent, exported.run_dir):
            assert str(place).encode() not in content, path.name
    config = (exported.run_dir / "export" / "config.yaml").read_text()
    assert f"name_or_path: {llama.name}" in config and f"path: {data.name}" in config


@pytest.mark.slow
def test_nothing_heavy_is_imported(tmp_path, trained):
    for target in ("hub", "vllm", "gguf"):
        done = watched(tmp_path, "action=export", f"adapter={trained}", f"target={target}")
        assert done.returncode == 0 and "HEAVY []" in done.stderr, done.stderr


def test_the_base_is_left_as_it_was_noted_where_nobody_names_it(cli, trained, llama):
    outcome = cli("action=export", f"adapter={trained}")
    assert outcome.code == 0 and "action.base_model is not set" in outcome.err
    config = json.loads((outcome.run_dir / "export" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == llama.name
    assert "base_model:" not in (outcome.run_dir / "export" / "README.md").read_text().split("---")[1]


def test_the_next_command_names_what_it_needs_and_an_unknown_licence_its_neighbour(cli, trained):
    run = cli("action=export", f"adapter={trained}", "license=apache2", "repo_id=me/mine")
    assert run.code == 0, run.err
    assert "action.license=apache2: is no license id that the Hub lists; did you mean apache-2.0?" in run.err
    assert " base_model=ORG/BASE license=apache2 repo_id=me/mine push=true" in run.out
    named = cli("action=export", f"adapter={trained}", "license=mit", "base_model=me/base")
    assert "license" not in named.err and " base_model=me/base license=mit repo_id=ORG/NAME push=true" in named.out


@pytest.mark.parametrize("private", [True, False])
def test_the_next_commands_keep_what_is_private_private(cli, trained, private):
    run = cli("action=export", f"adapter={trained}", "repo_id=me/mine", f"private={str(private).lower()}")
    ours, theirs = (line for line in run.out.splitlines() if "me/mine" in line and ("push=true" in line or "hf upload" in line) and "would" not in line)  # fmt: skip
    assert ("private=false" in ours, theirs.endswith(" --private")) == (not private, private)


def test_an_adapter_made_elsewhere_loses_the_path_of_its_base(cli, tmp_path, trained, llama):
    shutil.copytree(trained / "adapter", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "peftrun.json").unlink()
    file = tmp_path / "elsewhere" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(llama)}))
    (tmp_path / "elsewhere" / "tokenizer.json").write_text("{}")
    folder = cli("action=export", f"adapter={tmp_path / 'elsewhere'}").run_dir / "export"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == llama.name
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"
    }  # fmt: skip


@pytest.fixture(scope="module")
def by_peft(tmp_path_factory, llama):
    """An adapter that PEFT alone has made and saved, on the tiny Llama."""
    folder = tmp_path_factory.mktemp("by-peft") / "made"
    foreign_adapters.made(llama, folder, LoraConfig(**foreign_adapters.LLAMA))
    return folder


def noting(folder, base):
    """The adapter, as if it had been made for a base of this name."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


LOCAL = ["model=pretrained", "model.name_or_path=LLAMA"]


@cases(
    "noted, typed, served, kept, said",
    [
        ("LLAMA", ["target=vllm"], "vllm serve LLAMA --enable", None, "so launch.sh asks for BASE; base_model=ORG/NAME"),
        ("org/noted", ["target=vllm"], "vllm serve org/noted --enable", "org/noted", ""),
        ("org/noted", ["target=vllm", *LOCAL], "vllm serve LLAMA --enable", "org/noted", "BASE=LLAMA "),
        ("/far/away", ["target=vllm", *LOCAL], "vllm serve LLAMA --enable", None, "BASE=LLAMA "),
        ("/far/away", ["target=vllm"], "vllm serve BASE --enable", None, "replace BASE by its folder or Hub id (it is away)"),
        (None, ["target=vllm"], "vllm serve BASE --enable", None, "replace BASE by its folder or Hub id (it is not recorded)"),
        ("org/noted", ["target=vllm", "model=pretrained", "model.name_or_path=org/typed", "model.revision=v2"],
         "vllm serve org/typed --revision v2 --enable", "org/typed", ""),
        ("org/noted", ["target=vllm", "base_model=org/given"], "vllm serve org/given --enable", "org/given", ""),
        ("org/noted", ["target=vllm", "base_model=org/given", *LOCAL], "vllm serve org/given --enable", "org/given", ""),
        ("LLAMA", ["target=gguf"], "llama-cli -m BASE.gguf ", None, "convert_hf_to_gguf.py converts its folder (it is LLAMA)"),
        ("org/noted", ["target=hub"], "peftrun action=export", "org/noted", ""),
        ("/far/away", ["target=gguf"], "", None, "the base model's config.json is not on this machine"),
    ],
)  # fmt: skip
def test_the_base_of_an_adapter_made_elsewhere_is_named(
    cli, tmp_path, by_peft, llama, noted, typed, served, kept, said
):
    adapter = shutil.copytree(by_peft, tmp_path / "made")
    noting(adapter, noted and noted.replace("LLAMA", str(llama)))
    run = cli("action=export", f"adapter={adapter}", *(text.replace("LLAMA", str(llama)) for text in typed))
    told = run.out + run.err
    assert served.replace("LLAMA", str(llama)) in told and said.replace("LLAMA", str(llama)) in told, told
    assert "not used by this run" not in told
    if "target=vllm" in typed:
        export = run.run_dir / "export"
        assert json.loads((export / "vllm.json").read_text())["base"] == kept
        assert (f'BASE="${{BASE:-{kept}}}"' if kept else "set BASE to the base model") in (
            export / "launch.sh"
        ).read_text()
        assert str(llama) not in (export / "launch.sh").read_text() + (export / "vllm.json").read_text()


def other_template(folder):
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def other_tokenizer(folder):
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["merges"].pop()
    file.write_text(json.dumps(values))


def more_templates(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")


ITS_BASE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@cases(
    "change, typed, said",
    [
        (lambda folder: None, [], None),
        (other_template, [], "another chat template than its base model's"),
        (other_tokenizer, [], "another tokenizer than its base model's"),
        (lambda folder: noting(folder, "org/nowhere"), [], "is unknown on this machine"),
        (other_template, ["target=vllm"], "--chat-template default/chat_template.jinja"),
        (other_template, ["target=gguf"], "a GGUF adapter has none"),
        (more_templates, [], None),
    ],
    ids=lambda case: case[2],
)
def test_what_says_how_text_is_read_goes_along_and_is_said_where_it_is_not_the_base_s(
    cli, tmp_path, by_peft, llama, change, typed, said
):
    adapter = shutil.copytree(by_peft, tmp_path / "made")
    for name in ITS_BASE:
        shutil.copy(llama / name, adapter / name)
    change(adapter)
    run = cli("action=export", f"adapter={adapter}", *typed)
    assert run.code == 0 and (said in run.err if said else "comes with" not in run.err), run.err
    assert ("peftrun itself uses the base model's" in run.err) == (said is not None)
    if "target=gguf" in typed:
        return
    folder = run.run_dir / "export" / ("default" if typed else "")
    read = [*ITS_BASE, *(["additional_chat_templates/tools.jinja"] if change is more_templates else [])]
    assert all((folder / name).read_bytes() == (adapter / name).read_bytes() for name in read)
    if not typed:
        card = (folder / "README.md").read_text()
        assert all(f"`{name}`" in card for name in read) and 'AutoTokenizer.from_pretrained("FOLDER")' in card


def test_a_merged_model_is_exported_whole(cli, trained, llama, on_tiny):
    merged = cli(*on_tiny(llama), "action=merge", f"adapter={trained}").run_dir
    folder = cli("action=export", f"model_dir={merged}", "base_model=me/tiny").run_dir / "export"
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    one, other = (load_file(place / "model.safetensors") for place in (merged / "merged", folder))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert "library_name: transformers" in (folder / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_model_that_was_trained_whole_is_exported(cli, llama, on_tiny):
    run = cli(*on_tiny(llama), *TINY_STEPS, "lora=none").run_dir
    folder = cli("action=export", f"model_dir={run}", "base_model=me/tiny").run_dir / "export"
    card = (folder / "README.md").read_text()
    assert "base_model_relation: finetune" in card and "method | none" in card
    assert not [path for path in folder.rglob("*") if "optimizer" in path.name or "checkpoint" in path.name]


def test_a_folder_that_is_there_is_not_overwritten(cli, tmp_path, trained):
    (tmp_path / "mine").mkdir()
    asked = ["action=export", f"adapter={trained}", f"output_dir={tmp_path / 'mine'}"]
    check_refused(cli, tmp_path, asked, ("action.output_dir=", "never overwritten"))


def test_what_a_failed_run_left_is_refused(cli, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "failed")
    record = json.loads((tmp_path / "failed" / "record.json").read_text())
    (tmp_path / "failed" / "record.json").write_text(json.dumps(record | {"status": "failed", "error": "disk full"}))
    for path in ("failed", "failed/adapter"):
        asked = ["action=export", f"adapter={tmp_path / path}"]
        check_refused(cli, tmp_path, asked, ("this run is 'failed' (disk full)", "action.resume="))


def test_another_base_than_the_run_s_is_told_to_be_typed_in_vain(cli, trained):
    asked = ["action=export", f"adapter={trained}", "target=vllm", "model=pretrained", "model.name_or_path=org/other"]
    outcome = cli(*asked)
    assert outcome.code == 0 and "model.name_or_path=org/other was set but not used by this run" in outcome.err


@cases(
    "args, said",
    [
        ([], "adapter is not set; action=export needs one"),
        (["adapter={a: TRAINED, b: TRAINED}"], "action.target=hub exports one"),
        (["adapter=TRAINED", "model_dir=TRAINED"], "action.model_dir="),
        (["model_dir=TRAINED"], "holds no model in safetensors"),
        (["model_dir=LLAMA", "target=vllm"], "vLLM serves a full model as it is"),
        (["model_dir=LLAMA", "target=gguf"], "convert_hf_to_gguf.py"),
        (["adapter=TRAINED", "repo_id=even"], "must be an id on the Hub; type action.repo_id=ORG/NAME"),
        (["adapter=TRAINED", "base_model=/home/me/base"], "must be an id on the Hub; type action.base_model=ORG/NAME"),
        (["adapter=TRAINED", "target=vllm", "repo_id=me/even"], "action.repo_id=me/even: is only for action.target=hub"),
        (["adapter=TRAINED", "target=gguf", "license=mit"], "action.license=mit: is only for action.target=hub"),
        (["adapter=nowhere"], "is not a folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_told_before_anything_is_written(cli, tmp_path, trained, llama, args, said):
    args = [item.replace("TRAINED", str(trained)).replace("LLAMA", str(llama)) for item in args]
    check_refused(cli, tmp_path, ["action=export", *args], (said,))
