"""Whatever a person may type wrongly: keys, values, models, data. Each row is one command line and what it must say."""

import json
import shutil
import socket
import time
from importlib.util import find_spec

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS
from faults import check_failed, check_refused, fill, instead

import peftrun
from peftrun.artifacts import base_location, hub_cache
from peftrun.errors import ModelError

MODULES = "modules: down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
MODEL, DATA = "model.name_or_path", "task.data.path"

# What is found before the run starts: id → (overrides, fragments of the line for each problem).
REFUSED = {
    "unknown option": (
        ["lora=nosuch"],
        ["lora=nosuch: there is no such option", "adalora, adamss", "vera, waveft", "type lora=OPTION"],
    ),
    "typo in a key": (["lora.rr=3"], ["lora.rr=3: there is no such key", "did you mean lora.r?", "type lora.r=3"]),
    "typo in a forced key": (["++lora.rr=3"], ["lora.rr=3: there is no such key", "type lora.r=3"]),
    "typo in a top-level key": (["sed=3"], ["sed=3: there is no such key", "did you mean seed?", "type seed=3"]),
    "the last part of an old key": (["eval_rows=3"], ["eval_rows=3: there is no such key", "type task.data.num_test_rows=3"]),
    "a template under no key": (['task.prompt_templte="{prompt}"'], ["did you mean task.prompt_template?", "type 'task.prompt_template=\"{prompt}\"'"]),
    "a text with a comma": (
        ["action=generate", "prompt=Hi, there"], ["action.prompt=Hi, there: a text with a comma", "type 'action.prompt=\"Hi, there\"'"],
    ),
    "a key of a source that there is not": (
        ["task.data.mixture={more: {path: FILE, weight: 0.5, prompt_templat: a}}"],
        ["task.data.mixture.more.prompt_templat=a: there is no such key", "did you mean task.data.mixture.more.prompt_template?"],
    ),
    "a word for parameters": (["params=3"], ["params=3: must be a mapping", "type 'params={NAME: VALUE}'"]),
    "nothing like any key": (["zzzzz=3"], ["zzzzz=3: there is no such key", "`peftrun --cfg job` lists every key"]),
    "text for a number": (["lora.r=eight"], ["lora.r=eight: must be a valid integer", "type lora.r=16"]),
    "rank zero": (["lora.r=0"], ["lora.r=0: must be greater than or equal to 1", "type lora.r=16"]),
    "negative rate": (["trainer.learning_rate=-1"], ["trainer.learning_rate=-1: must be greater than 0", "=0.0002"]),
    "infinite rate": (["trainer.learning_rate=inf"], ["trainer.learning_rate=inf: must be a finite number", "=0.0002"]),
    "not an offered choice": (["device.dtype=int3"], ["device.dtype=int3: must be 'auto', 'float32', 'bfloat16'", "type device.dtype="]),
    "nearly an offered choice": (["task.data.split_strategy=lats"], ["must be 'random' or 'last'", "type task.data.split_strategy=last"]),
    "nearly one of a list": (["task.metrics=[rougel]"], ["'rouge_2' or 'rouge_l'", "type task.metrics=[rouge_l]"]),
    "a word for a list": (["task.metrics=chrf"], ["task.metrics=chrf: must be a list", "type task.metrics=[chrf]"]),
    "model without a name": (["model=pretrained"], [f"{MODEL} is not set; type {MODEL}=PATH"]),
    "a port too large": (["action=serve", "port=99999"], ["action.port=99999", "type action.port=8000"]),
    "a run for a list of runs": (["action=compare", "runs=X"], ["action.runs=X: must be a list; type action.runs=[outputs/train/RUN"]),
    "a tracker's key without one": (["tracker.mode=online"], ["no tracker is chosen", "type tracker=wandb tracker.mode=online"]),
    "another tracker's key": (
        ["tracker=tensorboard", "tracker.projet=x"],
        ["tracker=tensorboard has no project", "type tracker=mlflow tracker.project=x"],
    ),
    "warmup as long as training": (
        ["trainer.warmup_steps=60", "trainer.max_steps=60"],
        ["trainer.warmup_steps=60: must be below trainer.max_steps=60", "type trainer.warmup_steps=6"],
    ),
    "what cannot be converted to plain LoRA": (
        ["lora=pissa", "lora.bias=all"],
        ["lora.bias: cannot be combined with lora.init_lora_weights=pissa_niter_16", "leave lora.bias at its default"],
    ),
    "no target": (["lora.target_modules=[]"], ["lora.target_modules=[]: must have at least 1 item", "=all-linear"]),
    "broken pattern": (
        ['lora.target_modules="x("'],
        ["lora.target_modules=x(: ", "must be a regular expression", "(missing )", "type names: lora.target_modules=[q_proj,v_proj]"],
    ),
    "unreadable override": (["lora.r=["], ["lora.r=[: cannot be read as key=value", "quote what holds"]),
    "override without value": (["lora.r"], ["lora.r: cannot be read as key=value"]),
    "flag that does not exist": (["--nosuch"], ["--nosuch: there is no such flag", "`peftrun --hydra-help`"]),
    "broken template": (['task.prompt_template="{prompt"'], ["task.prompt_template={prompt: is not a template", "write columns as {text}"]),
    "prompt twice": (
        ["action=generate", "action.prompt=hello", "action.prompts_file=FILE"],
        ["action.prompt: cannot be combined with action.prompts_file", "omit one"],
    ),
    "no prompts file": (
        ["action=generate", "action.prompts_file=nowhere.txt"],
        ["action.prompts_file=nowhere.txt: there is no such file", "name a text file, one prompt a line"],
    ),
    "no such model folder": (
        [f"{MODEL}=./nowhere"], [f"{MODEL}=./nowhere: there is no such folder", "type a folder or a Hub id"],
    ),
    "no such data file": (
        [f"{DATA}=nowhere.jsonl"], [f"{DATA}=nowhere.jsonl: there is no such file", f"type {DATA}=FILE.jsonl"],
    ),
    "folder for a data file": (
        [f"{DATA}=."], [f"{DATA}=.: is a folder, and rows are in a file; it has ", "prompts.txt", f"type {DATA}="],
    ),
    "folder without rows": (
        ["task.data.mixture={more: {path: /proc/self/fdinfo, weight: 1.0}}"],
        ["task.data.mixture.more.path=/proc/self/fdinfo: is a folder without a file of rows", "type task.data.mixture.more.path=FILE.jsonl"],
    ),
    "folder for tools": (["task.tools=."], ["task.tools=.: is a folder", "name a JSON file"]),
    "model package not installed": (
        ["model.package=zzz_none"], ["model.package=zzz_none: this package is not installed", "`pip install zzz_none`"],
    ),
    "module of a package not installed": (
        ["model.package=zzz.none"], ["model.package=zzz.none: this package is not installed", "`pip install zzz.none`"],
    ),
    "data package not installed": (
        ["task.data.source=package", "task.data.package=zzz_none"],
        ["task.data.package=zzz_none: this package is not installed", "type `pip install zzz_none`"],
    ),
}  # fmt: skip


@cases("row", REFUSED, every=4)
def test_is_refused_before_the_run_starts(row, cli, tmp_path, on_tiny, llama):
    (tmp_path / "prompts.txt").write_text("hello\n")
    overrides, fragments = REFUSED[row]
    named = [word for word in on_tiny(llama) if word.startswith(("model", "task=", f"{DATA}="))]
    args = instead(named, fill(overrides, file="prompts.txt"))
    check_refused(cli, tmp_path, args, fragments)


def test_all_problems_are_told_together(cli, tmp_path, on_tiny, llama):
    wrong = [
        "lora.rr=3",
        "lora.r=eight",
        "trainer.warmup_steps=60",
        "task=instruction",
        "seed=-1",
        "adapter={",
        "device=tpu",
    ]
    check_refused(
        cli, tmp_path, instead(on_tiny(llama), wrong),
        ["lora.rr=3: there is no such key"], ["lora.r=eight: must be a valid integer"],
        ["trainer.warmup_steps=60: must be below"], [f"{DATA} is not set"], ["seed=-1: must be greater"],
        ["adapter={: cannot be read"], ["device=tpu: there is no such option", "auto, cpu, cuda"],
    )  # fmt: skip


def without(name):
    return lambda folder: (folder / name).unlink()


def as_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


# A model folder, and how it was broken: id → (what breaks it, fragments).
MODELS = {
    "without config": (without("config.json"), ["=PLACE: has no config.json", "name another"]),
    "without weights": (without("model.safetensors"), ["=PLACE: has no .safetensors file", "convert its weights"]),
    "pickle only": (as_pickle, ["=PLACE: has no .safetensors file (pickles", "are refused", "convert its weights"]),
}


@cases("place", ["broken", "ABSOLUTE"])
@cases("row", MODELS)
def test_a_broken_model_folder_is_refused(row, place, cli, tmp_path, on_tiny, llama):
    shutil.copytree(llama, tmp_path / "broken")
    spoil, fragments = MODELS[row]
    spoil(tmp_path / "broken")
    place = place.replace("ABSOLUTE", str(tmp_path / "broken"))
    args = instead(on_tiny(llama), [f"{MODEL}={place}"])
    check_refused(cli, tmp_path, args, [MODEL + fragments[0].replace("PLACE", place), *fragments[1:]])


def test_a_torn_model_file_is_named(cli, tmp_path, on_tiny, llama):
    shutil.copytree(llama, tmp_path / "torn")
    file = tmp_path / "torn" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    args = instead(on_tiny(llama), ["action=evaluate", f"{MODEL}=torn"])
    check_failed(cli, tmp_path, args, [f"{file}: is truncated or torn", "restore it"])


def test_a_model_that_is_nowhere_is_told_and_nobody_elsewhere_is_asked(cli, tmp_path, on_tiny, llama, monkeypatch):
    asked: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    args = instead(on_tiny(llama), ["action=evaluate", f"{MODEL}=nobody/nothing"])
    told = [f"{MODEL}=nobody/nothing: is not in the local cache", "`hf download nobody/nothing --local-dir FOLDER`",
            f"type model=pretrained {MODEL}=FOLDER"]  # fmt: skip
    check_failed(cli, tmp_path, args, told)
    assert asked == []
    spec = peftrun.load("model=qwen3").model
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3) or [])  # no name server answers
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(hub_cache, "CONNECT_TIMEOUT", 0.2)
    began = time.perf_counter()
    with pytest.raises(ModelError, match="the Hub cannot be reached"):
        base_location.check_hub_reachable(spec)
    assert time.perf_counter() - began < 2


def pairs(count, **last):
    rows = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(count)]
    return "".join(json.dumps(row) + "\n" for row in [*rows, *([{"completion": "c"} | last] if last else [])])


# A file of rows: id → (its name, what it holds, further overrides, fragments of the line for each problem).
ROWS = {
    "empty file": ("r.jsonl", "", [], [["DATA: the file is empty", "name a file with data"]]),
    "blank lines": ("r.jsonl", "\n\n", [], [["DATA: holds no rows", "name a file with data"]]),
    "header only": ("r.csv", "prompt,completion\n", [], [["DATA: holds no rows", "name a file with data"]]),
    "lacks columns": ("r.jsonl", '{"a": "b"}\n', [], [
        ["task.prompt_template: the data has no column 'prompt'", "columns: a", "type 'task.prompt_template=\"{COLUMN}\"'"],
        ["task.completion_template: the data has no column 'completion'", "columns: a", "type 'task.completion_template=\"{COLUMN}\"'"],
    ]),
    "lacks the label": ("r.jsonl", pairs(20), ["task.data.label_column=spam"], [
        ["task.data.label_column: the data has no column 'spam'", "type task.data.label_column=COLUMN"],
    ]),
    "broken json": ("r.jsonl", '{"prompt": "a", \n', [], [["DATA: cannot be read (line 1 is not JSON", "check the file"]]),
    "broken json further down": ("r.jsonl", pairs(20) + "no json\n", [], [["DATA: cannot be read (line 21 is not JSON"]]),
    "misspelt column": ("r.jsonl", pairs(20), ["task.prompt_template='Q: {promt}?'"], [
        ["task.prompt_template: the data has no column 'promt'", "type 'task.prompt_template=\"Q: {prompt}?\"'"],
    ]),
    "broken parquet": ("r.parquet", "abc", [], [["DATA: cannot be read (Parquet file", "check the file"]]),
    "unknown extension": ("r.xyz", "a", [], [["DATA: cannot tell its format", "ends in .csv, .tsv, .json, .jsonl"]]),
    "empty value": ("r.jsonl", pairs(20, prompt=" "), [], [["DATA: row 21: column prompt is empty", "remove the row"]]),
    "null value": ("r.jsonl", pairs(20, prompt=None), [], [["DATA: row 21: column prompt is empty", "fill it"]]),
    "all rows too long": ("r.jsonl", pairs(20), ["task.max_length=3"], [
        ["task.max_length=3: every one of the 12 training rows is longer", "(the shortest has ", "type task.max_length="],
    ]),
    "more held out than there is": ("r.jsonl", pairs(20), ["task.data.num_test_rows=400"], [
        ["task.data.num_test_rows=400: only 20 rows are left", "type task.data.num_test_rows=4"],
    ]),
    "attribute in a template": ("r.jsonl", pairs(20), ["task.prompt_template='{prompt.__class__}'"], [
        ["task.prompt_template: the data has no column 'prompt.__class__'", "columns: completion, prompt"],
    ]),
    "index in a template": ("r.jsonl", pairs(20), ["task.completion_template='{prompt[0]}'"], [
        ["task.completion_template: the data has no column 'prompt[0]'", "type 'task.completion_template=\"{prompt}\"'"],
    ]),
}  # fmt: skip


@cases("row", ROWS, every=3)
def test_bad_rows_are_told(row, cli, tmp_path, on_tiny, llama):
    name, text, more, problems = ROWS[row]
    (tmp_path / name).write_text(text)
    args = instead(on_tiny(llama), ["action=evaluate", f"{DATA}={name}", *more])
    check_failed(cli, tmp_path, args, *(fill(fragments, data=f"{DATA}={name}") for fragments in problems))


def test_bad_held_out_rows_are_told_under_their_own_key(cli, tmp_path, on_tiny, llama):
    (tmp_path / "held.jsonl").write_text("")
    args = [*on_tiny(llama), "action=evaluate", "task.data.test_path=held.jsonl"]
    check_failed(cli, tmp_path, args, ["task.data.test_path=held.jsonl: the file is empty", "name a file with data"])
    (tmp_path / "held.jsonl").write_text('{"question": "a", "completion": "b"}\n')
    check_failed(
        cli, tmp_path, args, ["task.data.test_path=held.jsonl: has no column 'prompt'", "rename 'prompt' there"]
    )
    args[-1] = "task.data.mixture={more: {path: held.jsonl, weight: 0.5}}"
    told = [
        "task.data.mixture.more.path=held.jsonl: has no column 'prompt'",
        'write prompt_template: "…" under task.data.mixture.more',
    ]
    check_failed(cli, tmp_path, args, told)


# What only the loaded model can tell: id → (overrides, fragments).
LATE = {
    "no such target": (["lora.target_modules=[nothing]"], ["lora.target_modules=nothing: matches no module", MODULES]),
    "one target of two": (
        ["lora.target_modules=[q_proj,v_porj]"],
        ["lora.target_modules=v_porj: matches no module", MODULES, "type lora.target_modules=[v_proj]"],
    ),
    "a pattern that matches nothing": (
        ["lora.target_modules='.*nothing'"], ["lora.target_modules=.*nothing: matches no module", MODULES],
    ),
    "a name given as a pattern": (
        ["lora.target_modules=q_proj"], ["=q_proj: matches no module", "type lora.target_modules=[q_proj]"],
    ),
    "no module to save": (
        ["lora.modules_to_save=[lm_haed]"],
        ["lora.modules_to_save=lm_haed: matches no module", "norm", "type lora.modules_to_save=[lm_head]"],
    ),
    "float16 on a processor": (
        ["device.dtype=float16"], ["device.dtype=float16: training in float16 needs a GPU", "type device.dtype=bfloat16"],
    ),
    "learning rate too high": (
        ["trainer.learning_rate=1e30"], ["the loss is ", "nothing was saved. Lower trainer.learning_rate (now 1e+30)"],
    ),
    "diverged after the last look at the loss": (
        ["trainer.learning_rate=1e30", "trainer.max_steps=1", "trainer.save_strategy=no"],
        ["evaluation loss after training is nan", "nothing was saved", "lower trainer.learning_rate"],
    ),
}  # fmt: skip


@cases("row", LATE)
def test_fails_with_its_reason_in_the_record(row, cli, tmp_path, on_tiny, llama):
    overrides, fragments = LATE[row]
    check_failed(cli, tmp_path, instead([*on_tiny(llama), *TINY_STEPS], overrides), fragments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_gpu_that_is_not_there_is_told(cli, tmp_path, on_tiny, llama):
    args = instead(on_tiny(llama), ["action=evaluate", "device=cuda"])
    check_failed(
        cli, tmp_path, args, ["device=cuda: torch finds no such device here", "type device=auto or device=cpu"]
    )


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash_attn is here")
def test_an_attention_that_is_not_installed_is_told(cli, tmp_path, on_tiny, llama):
    args = [*on_tiny(llama), "action=evaluate", "model.attn_implementation=flash_attention_2"]
    check_failed(cli, tmp_path, args, ["model.attn_implementation=flash_attention_2: cannot be used here", "=sdpa"])


def test_of_a_sweep_the_option_that_there_is_not_is_named_and_the_others_stay():
    from peftrun.composition import compose

    (line,) = compose.explain_overrides(["tracker=mlfow,none"], None)
    assert "there is no option mlfow; " in line and "did you mean mlflow? type tracker=mlflow,none" in line
