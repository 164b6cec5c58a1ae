"""action=preview: what it shows is what training gets, no weights and no torch are loaded for it, and no text breaks terminal or page."""

import shutil
from pathlib import Path

from cases import cases
from conftest import TINY_STEPS, jsonl
from encoders import build_bert, build_t5, on_texts, on_words
from html_pages import Page, needs_nothing
from test_startup import run
from transformers import AutoTokenizer

from peftrun.composition.compose import compose_run
from peftrun.composition.spec import build_spec
from peftrun.console import print_marked
from peftrun.io import atomic_files
from peftrun.results.preview import printed
from peftrun.results.report import learned_rows
from peftrun.tasks.rows import import_rows_module
from peftrun.tasks.tokenization import Encoder
from peftrun.training import fit

TOOLS_TEMPLATE = Path(__file__).parent.parent / "chat_templates" / "hermes.jinja"
EVIL = "<script>\"&' \x1b[31mred\x07 \u202eturned\u202c שלום \U0001f600 \u2028 \r\n"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
PLAIN = [
    "task.data.source=file", "task.data.package=null", "task.messages_column=null", "task.data.num_test_rows=3", "task.data.label_column=null",
    "task.data.labels=null", "task.data.balance=false",
]  # fmt: skip


def talk(number):
    return {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": f"Add {number}. {EVIL}"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": f"It is {number}."},
        ],
    }


def rows_of(folder):
    return atomic_files.read_json_lines(folder / "rows.jsonl")


PREFERENCES = {
    "dpo": [],
    "reward": [],
    "kto": ["task.completion_template='{chosen}'", "task.desirable_column=ok"],
    "grpo": ["task.completion_template='{chosen}'"],
    "translation": ["task.completion_template='{chosen}'"],
}


def built(kind, llama, gpt2, data, tmp_path):
    """What is typed for a task of each kind on a tiny model."""
    if kind in ("seq_cls", "token_cls"):
        return (on_texts if kind == "seq_cls" else on_words)(build_bert(tmp_path / "bert"), tmp_path)
    if kind == "talks":
        talks = jsonl(tmp_path / "talks.jsonl", [talk(n) for n in range(8)])
        more = [f"task.data.path={talks}", "task.data.num_test_rows=2", "task.loss_on=assistant", "task.max_length=900"]
        return [*on(tools_model(llama, tmp_path / "with-tools")), "task=chat", *more]
    if kind == "text":
        texts = jsonl(tmp_path / "texts.jsonl", [{"text": f"{n} " + "the lazy dog " * (3 * n + 1)} for n in range(12)])
        return [
            *on(gpt2),
            "task=plain_text",
            f"task.data.path={texts}",
            "task.data.num_test_rows=3",
            "task.max_length=32",
        ]
    if kind == "instruction":
        return [
            *on(llama),
            "task=instruction",
            f"task.data.path={data}",
            "task.data.num_test_rows=8",
            "task.max_length=64",
        ]
    pair = [{"prompt": f"Is {n} even?", "chosen": "yes", "rejected": "no", "ok": n % 2 == 0} for n in range(20)]
    rows = [
        f"task.data.path={jsonl(tmp_path / 'pairs.jsonl', pair)}",
        "task.prompt_template='{prompt}'",
        *PREFERENCES[kind],
    ]
    base = build_t5(tmp_path / "t5") if kind == "translation" else llama
    return [*on(base), f"task={kind}", *PLAIN, *rows, "trainer.per_device_train_batch_size=4"]


def on(base):
    return ["model=pretrained", f"model.name_or_path={base}", "device=cpu"]


def tools_model(llama, folder):
    """The tiny Llama with a template that writes tools, and room for them."""
    shutil.copytree(llama, folder)
    (folder / "chat_template.jinja").write_text(TOOLS_TEMPLATE.read_text())
    config = atomic_files.read_json(folder / "config.json")
    atomic_files.write_json(folder / "config.json", config | {"max_position_embeddings": 1024})
    return folder


def trained_on(cli, typed, monkeypatch):
    """The rows that the loop has been given, and its first batch."""
    seen = {}
    build = fit._build_trainer

    def watching(*args):
        made = build(*args)
        seen["rows"], seen["batch"] = list(made.train_dataset), made.data_collator
        return made

    monkeypatch.setattr(fit, "_build_trainer", watching)
    outcome = cli(
        *typed, *TINY_STEPS, "trainer.max_steps=1", "trainer.save_strategy=no", "action.evaluate_before=false"
    )
    assert outcome.code == 0, outcome.err
    return outcome, seen


KINDS = ("talks", "text", "instruction", "seq_cls", "token_cls", "dpo", "reward", "kto", "grpo", "translation")


@cases("kind", KINDS, every=5)
def test_what_is_shown_is_what_training_gets(cli, kind, llama, gpt2, data, tmp_path, monkeypatch):
    typed = built(kind, llama, gpt2, data, tmp_path)
    shown = cli(*typed, "action=preview", "rows=4", "tokens=true")
    assert shown.code == 0, shown.err
    rows = rows_of(shown.run_dir)
    outcome, seen = trained_on(cli, typed, monkeypatch)
    for row, given in zip(rows, seen["rows"], strict=False) if kind != "kto" else ():
        if kind in ("dpo", "reward"):
            check_pair(row, given, seen["batch"], kind)
        elif kind == "grpo":
            assert row["input_ids"] == given["prompt"] and set(row["labels"]) == {-100} and row["learned"] == []
        else:
            assert (row["input_ids"], row["labels"]) == (given["input_ids"], given["labels"])
    assert len(rows) == 4 and [strip(row) for row in rows[:3]] == rows_of(outcome.run_dir)
    assert (
        rows[0]["source"].startswith(str(tmp_path) if kind != "instruction" else str(data))
        and ": row " in rows[0]["source"]
    )
    assert all(one in row["text"] for row in rows for one in row["learned"] if kind not in ("seq_cls", "translation"))
    assert len(rows[0]["tokens"]) == len(rows[0]["input_ids"])
    page, report = (Page((folder / name).read_text()) for folder, name in ((shown.run_dir, "preview.html"), (outcome.run_dir, "report.html")))  # fmt: skip
    needs_nothing(page)
    for text in (rows[0]["source"], "How long they are", "Where they come from"):
        assert text in page.text
    assert "Training rows" in report.text and rows[0]["source"] in report.text


def strip(row):
    """A row as a training leaves it: without what was asked for."""
    return {key: strip(value) if isinstance(value, dict) else value for key, value in row.items() if key != "tokens"}


def check_pair(row, given, collate, kind):
    batch = collate([given])
    for side, one in ((0, row), (1, row["rejected"])):
        mask = batch["attention_mask"][side].bool()
        assert batch["input_ids"][side][mask].tolist() == one["input_ids"]
        learned = [label != -100 for label in one["labels"]]
        assert learned == (
            batch["completion_mask"][side][mask].bool().tolist() if kind == "dpo" else [False] * len(learned)
        )


def test_no_weights_and_no_torch(llama, data, tmp_path):
    base = Path(shutil.copytree(llama, tmp_path / "base"))
    (base / "model.safetensors").write_bytes(b"nothing that could be read")
    done = run(
        tmp_path, *on(base), "task=instruction", f"task.data.path={data}", "action=preview", "task.data.num_test_rows=8"
    )
    assert done.returncode == 0 and "HEAVY ['transformers']" in done.stderr, done.stderr
    assert "⟦yes<|im_end|>↵⟧" in done.stdout and "training rows  32;" in done.stdout


ROWS = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes"} for n in range(12)]
LONG = {"prompt": "Is it? " * 30, "completion": "yes"}
SAME = [*ROWS, LONG, ROWS[3]]  # row 13 is too long, row 14 repeats row 4


@cases(
    "typed, words",
    [
        ([], ["1: longer than task.max_length=64", "1: a repeated row", "14 rows; 10 training, 2 held-out"]),
        (["at=13"], ["rows.jsonl: row 13 is left out: longer than task.max_length=64 (", "tokens)"]),
        (["at=14"], ["row 14 is left out: a repeated row (task.data.deduplicate=false keeps it)"]),
        (["at=13", "task.data.test_path=rows.jsonl"], ["task.data.path=rows.jsonl: row 13 is left out: longer", "test_path=rows.jsonl: row 13 is left out: beyond"]),
        (["at=5", "task.data.deduplicate=false"], ["row 5 ·", "⟦yes<|im_end|>↵⟧"]),
        (["at=12", "task.data.split_strategy=last", "task.data.deduplicate=false"], ["row 12 · held-out ·"]),
        (["at=5", "task.data.num_train_rows=2", "task.data.split_strategy=last"], ["row 5 is left out: beyond task.data.num_train_rows=2"]),
        (["task.data.num_validation_rows=2", "trainer.eval_strategy=steps"], ["validation rows  2;"]),
        (["trainer.packing=true"], ["rows are shown before packing"]),
        (["at=15"], ["peftrun: action.at=15", "rows.jsonl has 14 rows", "type action.at="]),
        (["task.data.test_path=rows.jsonl"], ["task.data.path=rows.jsonl: 14 rows; 12 training", "test_path=rows.jsonl: 14 rows; 3 held-out", "warning: task.data.test_path=rows.jsonl: 3 of 3 evaluation rows are training rows too"]),
        (["task.data.test_path=more.jsonl"], ["rows.jsonl: 14 rows; 12 training", "more.jsonl: 9 rows; 3 held-out"]),
        (["'task.data.mixture={again: {path: rows.jsonl, weight: 1.0}}'"], ["task.data.mixture.again.path=rows.jsonl: 14 rows;", "type task.data.deduplicate=true"]),
        (["lora=prompt_tuning"], ["lora.num_virtual_tokens=20: training prepends as many virtual tokens to each row"]),
        (["lora=prompt_tuning", "lora.num_virtual_tokens=251"], ["peftrun: task.data.path=rows.jsonl: row", "reads 5 after 251 of the adapter", "type task.max_length=5"]),
        (["lora=adalora", "trainer.max_steps=20"], ["peftrun: lora.tinit=", "leaves no step of trainer.max_steps=20"]),
        (["'task.data.mixture={more: {path: more.jsonl, weight: 0.5}}'"], ["more.jsonl: 9 rows;", "task.data.mixture asks for fewer rows of its source"]),
    ],
    ids=lambda case: case[0],
)  # fmt: skip
def test_what_becomes_of_every_row(cli, llama, tmp_path, typed, words):
    jsonl(tmp_path / "rows.jsonl", SAME)
    jsonl(tmp_path / "more.jsonl", [{"prompt": f"And {n}?", "completion": "no"} for n in range(9)])
    rows = ["task=instruction", "task.data.path=rows.jsonl", "task.data.num_test_rows=3", "task.max_length=64"]
    shown = cli(*on(llama), *rows, "action=preview", *[one.strip("'") for one in typed])
    assert all(word in shown.out + shown.err for word in words), shown.out + shown.err
    if words[0].startswith("peftrun: "):
        assert shown.code == 1 and shown.err.count("peftrun: ") == 1 and "Traceback" not in shown.err
        assert shown.run_dir is None
        return
    page = Page((shown.run_dir / "preview.html").read_text()).text
    assert ("evaluation rows are training rows too" in page) == ("evaluation rows are training rows too" in shown.err)
    sources = shown.record()["preview"]["sources"]
    splits = ("training", "validation", "held-out")
    for one in sources.values():
        assert one["rows"] == sum(one.get(name, 0) for name in splits) + sum(one["left_out"].values())


@cases(
    "kind, more",
    [("talks", []), ("talks", ["task.loss_on=completion"]), ("text", []), ("instruction", []), ("dpo", [])],
)
def test_rows_read_together_are_those_read_alone(kind, more, llama, gpt2, data, tmp_path, monkeypatch):
    spec = build_spec(compose_run([*built(kind, llama, gpt2, data, tmp_path), *more]).cfg)
    for base in (spec.model.name_or_path, gpt2) if kind == "instruction" else (spec.model.name_or_path,):
        tokenizer, load = AutoTokenizer.from_pretrained(base), import_rows_module(spec.task.type).load_rows
        together = load(spec.task, tokenizer)
        with monkeypatch.context() as patch:
            patch.setattr(Encoder, "read_ahead", lambda *_: None)
            assert load(spec.task, tokenizer) == together


@cases("terminal, colour", [(False, None), (True, None), (True, "1")])
def test_no_text_breaks_the_terminal_or_the_page(capsys, monkeypatch, terminal, colour):
    monkeypatch.setenv("NO_COLOR", colour) if colour else monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR" if terminal else "UNUSED", "1")
    long = "word " * 4000
    text = f"{EVIL}{long}"
    row = {
        "source": "a.jsonl: row 1",
        "split": "training",
        "text": text,
        "spans": [[0, len(EVIL)]],
        "labels": [1],
        "input_ids": [1],
    }
    print_marked(printed.format_row(row))
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out and not {"\x07", "\u202e", "\u2028", "\r"} & set(out)
    assert ("\x1b[1;32m" in out) == (terminal and not colour) == ("⟦" not in out)
    assert "characters more" in out and len(out) < 6000 and "שלום" in out
    page = Page("".join(learned_rows.render_articles([row])))
    assert "<script>" in page.text and "script" not in page.tags and not {"\x1b", "\u202e"} & set(page.text)


def test_beside_a_teams_folder(cli, tmp_path, on_tiny, llama):
    """The command to type next finds the team's options; an experiment's key of another action is refused with what to type."""
    (tmp_path / "team" / "experiment").mkdir(parents=True)
    text = "# @package _global_\n# Ours.\n# peftrun experiment=ours\naction:\n  num_samples: 2\n"
    (tmp_path / "team" / "experiment" / "ours.yaml").write_text(text)
    ask = ["--config-dir", "team", "experiment=ours", "action=preview", *on_tiny(llama)]
    refused = cli(*ask)
    assert refused.code == 1 and "action.num_samples=2: is a key of action=train, plan" in refused.err
    assert "type ~action.num_samples" in refused.err
    shown = cli(*ask, "~action.num_samples", "rows=1")
    assert shown.code == 0, shown.err
    command = shown.out.partition("next:")[2].strip() or shown.err.partition("next:")[2].strip()
    assert command.startswith("peftrun --config-dir ") and "~" not in command and "experiment=ours" in command
