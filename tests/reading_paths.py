"""Tiny models and rows for every shipped experiment, in the columns that its task names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import build_gpt2, build_llama
from encoders import build_bert, build_t5

ANSWERS = [
    {"from": "human", "value": "Is 3 even?"},
    {"from": "gpt", "value": "no"},
    {"from": "human", "value": "Is 4?"},
]
ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "sms_spam": lambda n: {"text": f"call now {n}", "spam": n % 2},
    "alpaca": lambda n: {"instruction": f"Is {n} even?", "input": "", "output": "no" if n % 2 else "yes"},
    "tool_calls": lambda n: {"conversations": [*ANSWERS, {"from": "gpt", "value": f"yes {n}"}]},
    "dpo": lambda n: {
        "conversations": [{"from": "human", "value": f"Is {n} even?"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "kto": lambda n: {
        "messages": [{"role": "user", "content": f"Is {n}?"}, {"role": "assistant", "content": "yes"}],
        "label": bool(n % 2),
    },
    "ner": lambda n: {"input": ["Ana", "vive", "en", f"Lima{n}"], "ideal": ["B-PERSON", "O", "O", "B-LOCATION"]},
    "spanish_sentiment": lambda n: {"text": f"muy {'malo' if n % 2 else 'bueno'} {n}", "label": ["positive", "negative"][n % 2]},
    "summarization": lambda n: {"sentences": {"abstract": f"paper {n}"}, "summary": {"challenge": f"the {n}"}},
    "wiki_text": lambda n: {"text": f"The quick brown fox {n} jumps over the lazy dog."},
    "translation": lambda n: {"msgid": f"el libro {n}", "msgstr": "muy bueno"},
}  # fmt: skip
ROWS |= {"orpo": ROWS["dpo"], "reward": ROWS["dpo"], "grpo": ROWS["sms_spam"], "translation_lm": ROWS["translation"]}
TASKS = {  # experiments whose task has another name; the default task for those that choose none
    "instruction": "alpaca",
    "chat": "tool_calls",
    "plain_text": "wiki_text",
    "seq2seq": "translation",
    "translation": "translation_lm",
}
BASES = {"ner": "bert", "spanish_sentiment": "bert", "seq2seq": "t5", "gpt2_classic": "gpt2", "qlora": "wide"}
STEPS = ["trainer.max_steps=2", "trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.save_steps=2"]
MORE = {name: ["task.max_new_tokens=4"] for name in ("summarization", "translation", "seq2seq")}
MORE |= {"grpo": ["trainer.per_device_train_batch_size=8", "task.objective.max_completion_length=3"]}


def bases(folder: Path) -> dict[str, Path]:
    """A tiny random model of each kind that an experiment needs."""
    return {
        "llama": build_llama(folder / "llama"),
        "wide": build_llama(folder / "wide", hidden_size=64, intermediate_size=128),
        "gpt2": build_gpt2(folder / "gpt2"),
        "bert": build_bert(folder / "bert"),
        "t5": build_t5(folder / "t5"),
    }


def rows(folder: Path, experiment: str) -> Path:
    """Thirty-two rows for the experiment's task."""
    task = TASKS.get(experiment, experiment)
    make = ROWS.get(task, ROWS["sms_spam"])
    file = folder / f"{experiment}.jsonl"
    file.write_text("".join(json.dumps(make(n), ensure_ascii=False) + "\n" for n in range(32)))
    return file


def overrides(experiment: str, base: dict[str, Path], folder: Path) -> list[str]:
    """The experiment, small: its own method, task and settings on a tiny model and tiny rows."""
    model = base[BASES.get(experiment, "llama")]
    return [
        f"experiment={experiment}", "model=pretrained", f"model.name_or_path={model}", "task.data.source=file", "task.data.package=null",
        f"task.data.path={rows(folder, experiment)}", "task.data.test_path=null", "task.data.num_test_rows=8",
        "device.type=cpu", "device.dtype=float32", *STEPS, *MORE.get(experiment, []),
    ]  # fmt: skip
