"""Rows as tokens are kept between runs, and never used for a run that would make others."""

import dataclasses
import json
import os
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from peftrun.composition.compose import compose_run
from peftrun.composition.spec import build_spec
from peftrun.errors import DataError
from peftrun.tasks import import_task_module, row_cache

ROWS = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes"} for n in range(20)]


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTRUN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    write(path, ROWS)
    return path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def task_of(path, *overrides):
    given = [
        "task=instruction",
        f"task.data.path={path}",
        "task.data.num_test_rows=4",
        "task.max_length=64",
        *overrides,
    ]
    return build_spec(compose_run(given).cfg).task


def kept(folder):
    return sorted((folder / "cache" / "rows").glob("*.json"))


def test_what_is_kept_is_what_was_made_and_is_said_again(file, llama, tmp_path, capsys):
    tokenizer, task = AutoTokenizer.from_pretrained(llama), task_of(file, "task.max_length=40")
    write(file, [*ROWS, {"prompt": "x" * 200, "completion": "long"}])
    first = row_cache.load_cached_rows(import_task_module("causal_lm"), task, tokenizer)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data:")]
    again = row_cache.load_cached_rows(import_task_module("causal_lm"), task, tokenizer)
    told = capsys.readouterr().err.splitlines()
    assert dataclasses.asdict(first) == dataclasses.asdict(again) and len(kept(tmp_path)) == 1
    assert "longer than 40 tokens" in said[0] and told[1:] == said and "using cached rows" in told[0]


@pytest.mark.parametrize(
    "experiment, kind", [("dpo", "preference"), ("kto", "unpaired_preference"), ("grpo", "prompt_only")]
)
def test_rows_of_every_form_come_back(experiment, kind, file, llama, tmp_path):
    rows = [{"prompt": f"{n}?", "chosen": f"yes {n}", "rejected": f"no {n}", "label": n % 2 == 0} for n in range(12)]
    write(file, rows)
    task = build_spec(compose_run([
        f"task={experiment}", "task.data.source=file", f"task.data.path={file}", "task.messages_column=null", "task.prompt_template='{prompt}'",
        "task.completion_template='{chosen}'", "task.data.num_test_rows=3", "task.data.label_column=null", "task.data.labels=null", "task.data.balance=false",
    ]).cfg).task  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(llama)
    first, again = (row_cache.load_cached_rows(import_task_module(kind), task, tokenizer) for _ in range(2))
    assert (
        dataclasses.asdict(first) == dataclasses.asdict(again)
        and first.build_training_rows() == again.build_training_rows()
    )
    assert len(kept(tmp_path)) == 1


CHANGES = {
    "a row": lambda file, task, tokenizer: write(file, [*ROWS[:-1], {"prompt": "Is 20 even?", "completion": "yes"}]),
    "the template": lambda file, task, tokenizer: setattr(
        tokenizer, "chat_template", tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>\n\n")
    ),
    "a setting": lambda file, task, tokenizer: setattr(task, "system_prompt", "Be brief."),
    "what is learned": lambda file, task, tokenizer: setattr(task, "loss_on", "all"),
    "the vocabulary": lambda file, task, tokenizer: tokenizer.add_tokens(["even?"]),
    "a library": None,
    "the code": None,
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_rows_are_made_anew(what, file, llama, tmp_path, monkeypatch, capsys):
    tokenizer, task, kind = AutoTokenizer.from_pretrained(llama), task_of(file), import_task_module("causal_lm")
    row_cache.load_cached_rows(kind, task, tokenizer)
    capsys.readouterr()
    if what == "a library":
        monkeypatch.setattr(row_cache, "version", lambda name: "0")
    elif what == "the code":
        code = Path(row_cache.__file__).parent
        hash_file = row_cache.fingerprint.hash_file_cached
        monkeypatch.setattr(
            row_cache.fingerprint,
            "hash_file_cached",
            lambda path: "0" if path == code / "tokenization.py" else hash_file(path),
        )
    else:
        CHANGES[what](file, task, tokenizer)
    now = row_cache.load_cached_rows(kind, task, tokenizer)
    assert "earlier run" not in capsys.readouterr().err and len(kept(tmp_path)) == 2
    assert dataclasses.asdict(now) == dataclasses.asdict(kind.load_rows(task, tokenizer))


def test_a_file_of_the_same_name_size_and_time_is_told_apart(file, llama, tmp_path):
    tokenizer, task, kind = AutoTokenizer.from_pretrained(llama), task_of(file), import_task_module("causal_lm")
    row_cache.load_cached_rows(kind, task, tokenizer)
    before, text = file.stat(), file.read_text()
    other = tmp_path / "other.jsonl"
    other.write_text(text.replace("Is 19 even?", "Is 91 even?"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, file)
    prompts = [tokenizer.decode(row.prompt) for row in row_cache.load_cached_rows(kind, task, tokenizer).train]
    assert not any("19" in one for one in prompts)


@pytest.mark.parametrize("damage", ["{", "{}", '{"train": [{"a": 1}], "held_out": [], "digest": "", "said": []}'])
def test_damaged_rows_are_made_anew_and_said(damage, file, llama, tmp_path, capsys):
    tokenizer, task, kind = AutoTokenizer.from_pretrained(llama), task_of(file), import_task_module("causal_lm")
    first = row_cache.load_cached_rows(kind, task, tokenizer)
    kept(tmp_path)[0].write_text(damage)
    again = row_cache.load_cached_rows(kind, task, tokenizer)
    assert dataclasses.asdict(first) == dataclasses.asdict(again)
    assert "damaged; rebuilding them" in capsys.readouterr().err
    assert json.loads(kept(tmp_path)[0].read_text())["digest"] == first.digest


def test_a_cache_that_cannot_be_written_costs_time_alone(file, llama, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    tokenizer, task, kind = AutoTokenizer.from_pretrained(llama), task_of(file), import_task_module("causal_lm")
    monkeypatch.setenv("PEFTRUN_CACHE", str(tmp_path / "file" / "cache"))
    assert row_cache.load_cached_rows(kind, task, tokenizer).train


def test_rows_of_a_template_that_writes_the_day_are_of_that_day(file, llama, tmp_path, monkeypatch):
    tokenizer, task = AutoTokenizer.from_pretrained(llama), task_of(file)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    found = set()
    for day in (1, 1, 2):
        monkeypatch.setattr(row_cache, "date", SimpleNamespace(today=lambda day=day: date(2026, 1, day)))
        found.add(row_cache._build_cache_key(task, tokenizer))
    assert len(found) == 2


def test_a_file_that_is_gone_is_told_by_whoever_reads_it(file, llama):
    task = task_of(file)
    file.unlink()
    with pytest.raises(DataError, match=r"task\.data\.path=.*cannot be read"):
        row_cache.load_cached_rows(import_task_module("causal_lm"), task, AutoTokenizer.from_pretrained(llama))


def test_nothing_is_kept_where_it_is_not_wanted_or_cannot_be_told(file, llama, tmp_path):
    tokenizer, kind = AutoTokenizer.from_pretrained(llama), import_task_module("causal_lm")
    row_cache.load_cached_rows(kind, task_of(file, "task.data.cache=false"), tokenizer)
    assert kept(tmp_path) == []
    hub = task_of(file, "task.data.source=hub")
    assert row_cache._build_cache_key(hub, tokenizer) is None
    hub.data.revision = "0" * 40
    assert row_cache._build_cache_key(hub, tokenizer) is not None
