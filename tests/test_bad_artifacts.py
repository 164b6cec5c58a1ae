"""Adapters that are broken or belong elsewhere, folders that are taken, runs that cannot go on, disks that are full."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from cases import cases
from conftest import CHATML, TINY_STEPS, Outcome, build_llama, run_folders
from faults import check_failed, check_recorded, check_refused, check_told, fill, instead, snapshot
from transformers import AutoTokenizer

from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFTRUN_METADATA
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

WEIGHTS, CONFIG, FACTS = ADAPTER_WEIGHTS, ADAPTER_CONFIG, PEFTRUN_METADATA


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def holding(name, text):
    return lambda folder: (folder / name).write_text(text)


def torn(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def as_pickle(folder):
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "adapter_model.bin")


def as_gone(folder):
    shutil.rmtree(folder)


# How an adapter folder was broken: id → (what breaks it, fragments of the line).
BROKEN = {
    "missing": (as_gone, ["adapter=broken: is not a folder", "name a run folder"]),
    "empty": (without(WEIGHTS, CONFIG, FACTS), ["adapter=broken: the folder is empty", f"one that holds {CONFIG}"]),
    "no config": (without(CONFIG), [f"adapter=broken: holds no {CONFIG}", "name a run folder"]),
    "no weights": (without(WEIGHTS), [f"adapter=broken: {WEIGHTS} is missing beside {CONFIG}", "restore it"]),
    "torn weights": (torn, ["adapter=broken: ", f"{WEIGHTS}: is truncated or torn (", "restore it"]),
    "weights of zero bytes": (holding(WEIGHTS, ""), [f"{WEIGHTS}: is not a readable safetensors file", "restore it"]),
    "broken config": (holding(CONFIG, '{"r": '), ["adapter=broken: ", f"{CONFIG}: is not readable JSON", "restore it"]),
    "config of another kind": (holding(CONFIG, "[]"), [f"{CONFIG}: holds no JSON object", "restore it"]),
    "broken facts": (holding(FACTS, "{"), ["adapter=broken: ", f"{FACTS}: is not readable JSON", "restore it"]),
    "facts without a base": (holding(FACTS, "{}"), [f"{FACTS}: does not say which base", "make the adapter again"]),
    "pickle only": (as_pickle, ["adapter=broken: adapter_model.bin is a pickle", "refused", f"again as {WEIGHTS}"]),
}


@cases("row", BROKEN, every=3)
def test_a_broken_adapter_is_refused_before_the_run_starts(row, cli, tmp_path, on_tiny, llama, trained):
    shutil.copytree(trained / "adapter", tmp_path / "broken")
    spoil, fragments = BROKEN[row]
    spoil(tmp_path / "broken")
    check_refused(cli, tmp_path, [*on_tiny(llama), "action=reload", "adapter=broken"], fragments)


# Adapters named wrongly, and folders that are taken: id → (overrides, fragments).
REFUSED = {
    "slash in a name": (["adapter={a/b: TRAINED}"], ["adapter name 'a/b': must be letters", "adapter={a_b: PATH}"]),
    "a dot in a name": (["adapter={v1.2: TRAINED}"], ["adapter name 'v1.2': must be letters", "adapter={v1_2: PATH}"]),
    "dots for a name": (["adapter={..: TRAINED}"], ["adapter name '..': must be letters", "adapter={my_name: PATH}"]),
    "no name": (["--config-dir=team", "experiment=nameless"], ["adapter name '': must be letters", "{my_name: PATH}"]),
    "quoted name": (['adapter={"a/b": TRAINED}'], ["cannot be read", "names in braces need no quotes"]),
    "list of adapters": (["adapter=[TRAINED]"], ['adapter=[TRAINED]: must be a mapping {name: VALUE}']),
    "one of two missing": (
        ["adapter={one: TRAINED, two: nowhere}"], ["adapter.two=nowhere: is not a folder", "name a run folder"],
    ),
    "no adapter": (["adapter=null"], ["adapter is not set; action=reload needs one", "type adapter=RUN_FOLDER"]),
    "active is another": (
        ["adapter={one: TRAINED}", "active_adapter=two"], ["active_adapter=two: there is no such adapter", "adapters: one"],
    ),
    "save into a folder that exists": (
        ["action=save", "adapter=TRAINED", "action.output_dir=taken"],
        ["action.output_dir=taken: exists already and is never overwritten", "name a folder that does not exist"],
    ),
    "merge into a folder that exists": (
        ["action=merge", "adapter=TRAINED", "action.output_dir=taken"],
        ["action.output_dir=taken: exists already and is never overwritten", "name a folder that does not exist"],
    ),
    "run folder that holds a run": (
        ["action=evaluate", "hydra.run.dir=old_run"],
        ["hydra.run.dir=old_run: holds a run already", "name a folder that does not exist"],
    ),
    "resume nothing": (
        ["action=train", "action.resume=nowhere"],
        ["action.resume=nowhere: is not a run folder", "name one below outputs/train, or type action.resume=auto"],
    ),
}  # fmt: skip


@pytest.fixture
def taken(tmp_path, trained) -> None:
    """A folder with something in it, two with a run, and a team's experiment whose adapter has no name."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    shutil.copytree(trained, tmp_path / "old_run")
    (tmp_path / "team" / "experiment").mkdir(parents=True)
    (tmp_path / "team" / "experiment" / "nameless.yaml").write_text(f'# @package _global_\nadapter:\n  "": {trained}\n')


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize("row", REFUSED)
def test_is_refused_before_the_run_starts(row, cli, tmp_path, on_tiny, llama, trained):
    overrides, fragments = REFUSED[row]
    args = instead([*on_tiny(llama), "action=reload"], fill(overrides, trained=trained))
    args.sort(key=lambda item: not item.startswith("--"))  # flags stand first
    check_refused(cli, tmp_path, args, fill(fragments, trained=trained))


def test_a_run_in_a_folder_named_by_interpolation_is_kept(cli, tmp_path, on_tiny, llama, trained):
    shutil.copytree(trained, tmp_path / "kept_evaluate")
    outcome = cli(*on_tiny(llama), "action=evaluate", "hydra.run.dir=kept_${action.name}")
    check_told(outcome, [["kept_evaluate: holds a run already", "name a folder that does not exist"]])
    for name in ("record.json", "config.yaml", "metrics.jsonl", f"adapter/{WEIGHTS}"):
        assert (tmp_path / "kept_evaluate" / name).read_bytes() == (trained / name).read_bytes()


def other_weights(folder, gpt2):
    return build_llama(folder / "tiny-other", seed=1)


def other_shapes(folder, gpt2):
    return build_llama(folder / "tiny-wide", hidden_size=48)


def other_architecture(folder, gpt2):
    return gpt2


BASES = {other_weights: "tiny-other", other_shapes: "tiny-wide", other_architecture: "tiny-gpt2"}


@cases("action", ["reload", "merge", "save", "evaluate"])
@cases("other", BASES, ids=lambda other: other.__name__)
def test_an_adapter_for_another_base_is_refused(other, action, cli, tmp_path, gpt2, on_tiny, trained):
    args = [*on_tiny(other(tmp_path, gpt2)), f"action={action}", f"adapter={trained}"]
    told = [f"{trained / 'adapter'}: was made for base tiny-llama (", f"this is {BASES[other]} (",
            "choose that model, or type allow_base_mismatch=true"]  # fmt: skip
    check_failed(cli, tmp_path, args, told)


@cases("other", [other_shapes, other_architecture], ids=lambda other: other.__name__)
def test_an_adapter_that_cannot_fit_is_refused_even_if_allowed(other, cli, tmp_path, gpt2, on_tiny, trained):
    args = [*on_tiny(other(tmp_path, gpt2)), "action=reload", f"adapter={trained}", "allow_base_mismatch=true"]
    told = [f"{trained / 'adapter'}: does not fit {BASES[other]} (", "choose the base it was made for"]
    check_failed(cli, tmp_path, args, told)


def edit_json(file, **values):
    atomic_files.write_json(file, atomic_files.read_json(file) | values)


def other_tokens(folder):
    """No merges: the same words in other tokens, every one of them."""
    file = folder / "tokenizer.json"
    model = atomic_files.read_json(file)["model"]
    edit_json(file, model=model | {"merges": []})


def other_template(folder):
    (folder / "chat_template.jinja").write_text(CHATML.replace("assistant", "bot"))


def added_token(folder):
    """As many a training does that has nothing to pad with."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<|pad of mine|>"})
    tokenizer.save_pretrained(folder)


def as_foreign(change, base, adapter):
    """As TRL saves an adapter: the tokenizer beside it, and nothing of peftrun's."""
    (adapter / FACTS).unlink()
    AutoTokenizer.from_pretrained(base).save_pretrained(adapter)
    change(adapter)


def laid_beside(base, adapter):
    AutoTokenizer.from_pretrained(base).save_pretrained(adapter)
    other_tokens(adapter)


# What is not as it was when the adapter was made: how (base, adapter), fragments of what is said, whether it is refused.
CHANGED = {
    "tokenizer": (lambda base, adapter: other_tokens(base), ["which has another tokenizer"], True),
    "template": (lambda base, adapter: other_template(base), ["which has another chat template", "conversations"], False),
    "own tokenizer": (partial(as_foreign, other_tokens), ["brings another tokenizer than base", "copy of the base"], True),
    "own template": (partial(as_foreign, other_template), ["brings another chat template than base"], False),
    "laid beside ours": (laid_beside, ["brings another tokenizer than base", "copy of the base"], True),
    "own, with a token more": (partial(as_foreign, added_token), ["also has <|pad of mine|>", "as plain text"], False),
    "own, the same": (partial(as_foreign, lambda folder: None), ["was not made by peftrun"], False),
    "new and on": (lambda base, adapter: edit_json(adapter / CONFIG, use_new=True, peft_version="9.1"),
                   ["use_new=true", "pip install peft==9.1"], True),
    "new and off": (lambda base, adapter: edit_json(adapter / CONFIG, use_new=False), ["use_new of adapter_config.json"], False),
}  # fmt: skip


@cases("name, action", product(CHANGED, ["reload", "merge"]), every=3)
def test_what_is_not_as_it_was_is_named_and_refused_where_answers_must_differ(
    name, action, cli, tmp_path, llama, on_tiny, trained
):
    base, adapter = shutil.copytree(llama, tmp_path / "base"), shutil.copytree(trained / "adapter", tmp_path / "made")
    change, fragments, refused = CHANGED[name]
    change(base, adapter)
    args = [*on_tiny(base), f"action={action}", f"adapter={adapter}"]
    outcome = cli(*args)
    if refused:
        check_told(outcome, [fragments])
    assert outcome.code == int(refused) and all(part in outcome.err for part in fragments), outcome.err
    if refused and "another" in fragments[0]:
        allowed = cli(*args, "allow_base_mismatch=true")
        assert allowed.code == 0 and "as allowed" in allowed.err, allowed.err
    if "another" not in fragments[0]:
        assert "another" not in outcome.err
    elif action == "reload" and not refused:
        assert "another chat template" in outcome.out or FACTS not in {path.name for path in adapter.iterdir()}


def test_an_adapter_of_a_run_that_failed_is_refused_with_its_reason(cli, tmp_path, on_tiny, llama):
    refused = cli(*on_tiny(llama), *TINY_STEPS, "lora.target_modules=[nothing]")  # rows were there, no step was taken
    assert refused.code == 1 and not (tmp_path / "outputs").exists()
    failed = cli(*on_tiny(llama), *TINY_STEPS, "trainer.learning_rate=1e30").run_dir
    told = [f"adapter={failed}: this run is 'failed' and saved no adapter (the loss is nan at step",
            f"action.resume={failed}, or name another run"]  # fmt: skip
    check_refused(cli, tmp_path, [*on_tiny(llama), "action=reload", f"adapter={failed}"], told)


def test_a_completed_run_without_its_adapter_is_not_said_to_be_unfinished(cli, tmp_path, on_tiny, llama, trained):
    shutil.copytree(trained, tmp_path / "bare", ignore=shutil.ignore_patterns("adapter"))
    told = ["adapter=bare: this run is 'completed', and its folder holds no adapter; restore it"]
    check_refused(cli, tmp_path, [*on_tiny(llama), "action=reload", "adapter=bare"], told)


def test_a_completed_run_is_not_resumed(cli, tmp_path, on_tiny, llama, trained):
    args = [*on_tiny(llama), *TINY_STEPS, f"action.resume={trained}"]
    check_failed(cli, tmp_path, args, [f"action.resume={trained}: this run is complete", "omit action.resume"])


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["peftrun", *sys.argv[2:]]
from peftrun.cli.main import main
sys.exit(main())
"""
# What a disk that takes no file above so many bytes must not tear: id → (bytes, overrides, fragments).
FULL = {
    "adapter": (
        20_000, ["action=save", "adapter=TRAINED", "action.output_dir=near/new"],
        ["near/new: could not be written (", "nothing was kept there"],
    ),
    "merged model": (
        20_000, ["action=merge", "adapter=TRAINED", "action.output_dir=near/new"],
        ["near/new: could not be written (", "nothing was kept there"],
    ),
    "weights of a checkpoint": (20_000, TINY_STEPS, ["the disk is full (", "free space and run again"]),
    "optimizer of a checkpoint": (60_000, TINY_STEPS, ["the disk is full (", "free space and run again"]),
}  # fmt: skip


def on_full_disk(where: Path, size: int, *args: str) -> Outcome:
    """The command line in a process of its own that can write no file larger than `size` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *args],
        cwd=where, env=os.environ, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr, next(iter(run_folders(where)), None))


@pytest.mark.slow
@pytest.mark.parametrize("row", FULL)
def test_a_full_disk_leaves_nothing_half_written(row, tmp_path, on_tiny, llama, trained):
    shutil.copytree(trained / "adapter", tmp_path / "near" / "old")
    before = snapshot(tmp_path), snapshot(trained)
    size, overrides, fragments = FULL[row]
    outcome = on_full_disk(tmp_path, size, *on_tiny(llama), *fill(overrides, trained=trained))
    check_told(outcome, [fragments])
    check_recorded(outcome, [fragments])
    shutil.rmtree(tmp_path / "outputs")
    assert (snapshot(tmp_path), snapshot(trained)) == before


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system refuses this process any file larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    file = tmp_path / "kept.json"
    atomic_files.write_json(file, {"a": 1})
    before = snapshot(tmp_path)
    with no_file_above(4096), pytest.raises(ArtifactError, match=r"kept\.json: could not be written .* is intact"):
        atomic_files.write_text(file, "x" * 100_000)
    assert snapshot(tmp_path) == before and json.loads(file.read_text()) == {"a": 1}


@pytest.mark.parametrize("writer", ["python", "torch", "safetensors"])
def test_a_folder_that_cannot_be_written_leaves_nothing(writer, tmp_path):
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(100_000)}
    write = {
        "python": lambda file: file.write_bytes(b"x" * 100_000),
        "torch": lambda file: torch.save(tensors, file),
        "safetensors": lambda file: save_file(tensors, file),
    }[writer]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old")
    before = snapshot(tmp_path)
    told = pytest.raises(ArtifactError, match=r"new: could not be written .* nothing was kept there")
    with no_file_above(4096), told, atomic_files.create_folder(tmp_path / "new") as folder:
        (folder / "small").write_text("small")
        write(folder / "large")
    assert snapshot(tmp_path) == before
