"""A user's desk on tiny models: the files and folders that the documentation's commands name, under the very names it gives them."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import TINY_STEPS, Outcome, build_gpt2, build_llama, cli_here, jsonl
from encoders import build_bert, build_t5
from test_methods import FITTING

# What a command names and nobody here has → what stands on the desk in its place. Any other base that is not on the desk: the tiny Llama.
BASE_KEYS = ("model.name_or_path", "action.finetuned_model", "finetuned_model")
STAND_INS = {
    "google-t5/t5-small": "t5",
    "MERGED_FOLDER": "outputs/merge/RUN/merged",
    "my_model": "outputs/merge/RUN/merged",
    "outputs/train/RUN/model": "outputs/merge/RUN/merged",
    "FOLDER": "outputs/merge/RUN/merged",
}
SHOWN = {
    "outputs/train/OTHER": "outputs/train/RUN2",
    "one: …, two: …": "one: outputs/train/RUN, two: outputs/train/RUN2",
    "our_templates/our_templates": "team",
    "task.data.path=rows.jsonl": "task.data.path=answered.jsonl",
    "…": "ham",
}
WRITTEN = ("hydra.run.dir=", "action.output_dir=", "output_dir=", "path=")
TOKENS = (
    "lora.trainable_token_indices",
    "lora.token_indices",
)  # of a vocabulary of 400, where the real ones have 49,152
NO_MODEL = (
    "inspect",
    "diff",
    "explain",
    "template",
    "import",
    "check",
    "replay",
    "list",
    "compare",
    "browse",
    "export",
)
BASES = {
    "seq2seq": "t5",
    "ner": "bert",
    "spanish_sentiment": "bert",
    "gpt2_classic": "gpt2",
    "gpt2": "gpt2",
    "minilm": "bert",
    "translation": "t5",
    "experiment=translation": "llama",  # which is task=translation_lm
}
ROWS = ["task=instruction", "task.data.path=pairs.jsonl", "task.data.num_test_rows=8", "task.max_length=64"]
FEW_ROWS = ["task.data.num_train_rows=12", "task.data.num_test_rows=4"]
LONGEST = {"llama": 2048, "gpt2": 200, "t5": 200, "bert": 64}  # the tokenizers have some 400 pieces, so rows are long
STEPS = 4


def shelf(folder: Path) -> Path:
    """A folder with everything on it, made once; desks are copies of it that share the large files."""
    build_llama(folder / "llama", max_position_embeddings=2048)
    build_gpt2(folder / "gpt2")
    build_bert(folder / "bert")
    build_t5(folder / "t5")
    _data(folder)
    for name, seed in (("RUN", 0), ("RUN2", 1)):
        _run(folder, f"hydra.run.dir=outputs/train/{name}", f"seed={seed}", *TINY_STEPS, *tiny([]))
    _run(
        folder, "action=merge", "adapter=outputs/train/RUN", "hydra.run.dir=outputs/merge/RUN", *tiny(["action=merge"])
    )
    _encoders(folder)
    _templates(folder)
    _tasks(folder)
    _functions(folder)
    return folder


def _encoders(folder: Path) -> None:
    """The two classifiers on one encoder that the pages switch between."""
    for name in ("spanish", "ner"):
        words = ["model=minilm", f"task={'ner' if name == 'ner' else 'spanish_sentiment'}", f"hydra.run.dir={name}"]
        _run(folder, *words, *tiny(words))
    both = ["action=save", "model=minilm", "adapter={spanish: spanish, ner: ner}", "action.output_dir=both"]
    _run(folder, *both, *tiny(both))


def _templates(folder: Path) -> None:
    """A team's folder with what docs/teams.md shows: the template that is made there, and the one that is written there."""
    _run(
        folder,
        "action=template",
        "path=our_templates",
        "lora=dora",
        "lora.r=4",
        "task=instruction",
        "task.data.path=mine.jsonl",
    )
    (folder / "our_templates" / "our_templates").rename(folder / "team")
    shutil.rmtree(folder / "our_templates")
    page = (Path(__file__).parents[2] / "docs" / "teams.md").read_text(encoding="utf-8")
    shown = next(block for block in page.split("```yaml\n")[1:] if block.startswith("# @package"))
    (folder / "team" / "experiment" / "ours_support.yaml").write_text(shown.split("```")[0])


def _tasks(folder: Path) -> None:
    """A task of one's own for lm-evaluation-harness, as docs/lm-eval.md shows it, and a few rows for it."""
    page = (Path(__file__).parents[2] / "docs" / "lm-eval.md").read_text(encoding="utf-8")
    shown = next(block for block in page.split("```yaml\n")[1:] if "task: spam" in block)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "spam.yaml").write_text(shown.split("```")[0])
    jsonl(
        folder / "spam.jsonl", [{"text": "call now to win", "label": "spam"}, {"text": "see you", "label": "ham"}] * 3
    )


def _functions(folder: Path) -> None:
    """A metric and a reward of one's own, as docs/data.md and docs/preferences.md show them."""
    for page, name in (("data.md", "metrics.py"), ("preferences.md", "rewards.py")):
        text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
        (folder / name).write_text(text.split("```python\n")[1].split("```")[0])


def _run(folder: Path, *words: str) -> None:
    done = cli_here(folder, *words)
    assert done.code == 0, done.err


def _data(folder: Path) -> None:
    numbers = [(f"Is {n} even?", "no" if n % 2 else "yes") for n in range(40)]
    for name in ("pairs.jsonl", "more.jsonl"):
        jsonl(folder / name, [{"prompt": ask, "completion": answer} for ask, answer in numbers])
    names = ("prompt", "question", "completion", "answer", "better", "worse")
    jsonl(
        folder / "mine.jsonl",
        [dict(zip(names, (ask, ask, answer, answer, answer, "maybe"), strict=True)) for ask, answer in numbers],
    )
    pairs = [{"prompt": ask, "chosen": answer, "rejected": "maybe"} for ask, answer in numbers]
    jsonl(folder / "preferences.jsonl", pairs)
    (folder / "faq.csv").write_text("question,answer\n" + "".join(f"{ask},{answer}\n" for ask, answer in numbers))
    alpaca = [{"instruction": ask, "input": "", "output": answer} for ask, answer in numbers]
    (folder / "alpaca.json").write_text(json.dumps(alpaca))
    jsonl(
        folder / "papers.jsonl",
        [{"sentences": {"abstract": [ask]}, "summary": {"challenge": answer}} for ask, answer in numbers],
    )
    talks = [[{"role": "user", "content": ask}, {"role": "assistant", "content": answer}] for ask, answer in numbers]
    jsonl(folder / "chats.jsonl", [{"messages": talk} for talk in talks])
    (folder / "tools.json").write_text(json.dumps([{"name": "weather", "parameters": {"type": "object"}}]))
    (folder / "book.txt").write_text("".join(f"{ask} {answer}\n" for ask, answer in numbers))
    (folder / "mine.csv").write_text(
        "text,label\n" + "".join(f"libro {n},{'no' if n % 2 else 'yes'}\n" for n in range(300))
    )
    jsonl(folder / "tags.jsonl", [{"words": ["Ana", f"vive{n}"], "tags": ["B-PER", "O"]} for n in range(60)])
    jsonl(folder / "rows.jsonl", [{"prompt": ask, "adapter": who} for who in ("one", "two") for ask, _ in numbers[:4]])
    jsonl(
        folder / "answered.jsonl",
        [{"prompt": ask, "completion": answer, "who": who} for who in ("one", "two") for ask, answer in numbers],
    )
    base = "llama\ndatasets: [{path: pairs.jsonl, type: {field_instruction: prompt, field_output: completion}}]"
    (folder / "axolotl.yaml").write_text(f"base_model: {base}\nadapter: lora\nmicro_batch_size: 1\nsequence_len: 64\n")
    (folder / "llama_factory.yaml").write_text(
        "model_name_or_path: llama\nstage: sft\ntemplate: llama3\ncutoff_len: 64\n"
    )
    (folder / "trl_sft.yaml").write_text("model_name_or_path: llama\ndataset_name: pairs.jsonl\nuse_peft: true\n")
    (folder / "train.sh").write_text("swift sft --model llama --tuner_type lora --dataset pairs.jsonl\n")
    (folder / "zero2.json").write_text("{}")
    (folder / "prompts.txt").write_text("Is 2 even?\nIs 3 even?\n")


def interrupted(done: Outcome) -> None:
    """Makes of a run that went well what a kill would have left of it: checkpoints, and a record that is not finished."""
    assert done.code == 0 and done.run_dir is not None, done.err
    (done.run_dir / "record.json").write_text(json.dumps(done.record() | {"status": "running"}))
    shutil.rmtree(done.run_dir / "adapter")


def lay(where: Path, made: Path, words: Sequence[str] = ()) -> None:
    """Lays a desk into an empty folder, without what the words of a command are to write."""
    written = {word.partition("=")[2] for word in words if word.startswith(WRITTEN)}
    for item in made.iterdir():
        if item.name != "outputs" and item.name not in written:
            (where / item.name).symlink_to(item)
    shutil.copytree(made / "outputs", where / "outputs", symlinks=True)


def on_desk(words: Sequence[str]) -> list[str]:
    """A command's words, with what stands on the desk in place of what nobody here has, and small sizes where it names none."""
    said = [_stood_in(word) for word in words]
    return [*_team(said), *said, *tiny(said)]


def as_typed(words: Sequence[str]) -> list[str]:
    """A command's words as they are shown."""
    return [*_team(words), *words]


def _team(words: Sequence[str]) -> list[str]:
    """The folder of a template that somebody would have installed."""
    return ["--config-dir=team"] if any(word.startswith("experiment=our") for word in words) else []


def _stood_in(word: str) -> str:
    key, sign, value = word.partition("=")
    if key in BASE_KEYS and not value.startswith("outputs/merge"):
        return f"{key}{sign}{STAND_INS.get(value, 'llama')}"
    if key in TOKENS:
        return f"{key}{sign}[70,71]"
    if key == "path" or (sign == "=" and key == "hydra.run.dir"):
        return word
    for shown, stand_in in SHOWN.items():
        word = word.replace(shown, stand_in)
    return word


def tiny(words: Sequence[str]) -> list[str]:
    """What makes a command small, but for what it says itself."""
    given = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    action = given.get("action", "train")
    if any(word.startswith(("--", "-sc")) for word in words if word != "--config-dir") or action in NO_MODEL:
        return []
    base = _base(given)
    added = [*_model(given, base), *_task(given, base), *_steps(given), *_method(given)]
    device = [] if "device" in given else ["device=cpu"]
    return [item for item in [*added, *device, "device.dtype=float32"] if item.split("=", 1)[0] not in given]


def _base(given: dict[str, str]) -> str:
    """The tiny base of a command's kind."""
    named = ((key, given.get(key, "")) for key in ("model", "experiment", "task"))
    wanted = (name for key, value in named for name in (f"{key}={value}", value))
    return next((BASES[name] for name in wanted if name in BASES), "llama")


def _model(given: dict[str, str], base: str) -> list[str]:
    own = ["model.package=null", f"model.name_or_path={base}"]
    return own if "model" in given else ["model=pretrained", *own]


def _task(given: dict[str, str], base: str) -> list[str]:
    if "task.data.path" in given:
        return ["task.data.num_test_rows=4", "task.max_length=64"]
    if "task" in given or "experiment" in given:
        return [*FEW_ROWS, f"task.max_length={LONGEST[base]}"]
    return ROWS


def _steps(given: dict[str, str]) -> list[str]:
    if "trainer" in given:
        return []
    warmup = int(given.get("trainer.warmup_steps", "0"))
    return [f"trainer.max_steps={warmup + STEPS}", "trainer.warmup_steps=0"]


def _method(given: dict[str, str]) -> list[str]:
    return FITTING.get(given.get("lora", ""), [])
