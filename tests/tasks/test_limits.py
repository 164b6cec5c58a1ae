"""Rows that a model cannot read or learn from end a run before its first step, and a loss that is no number ends it at once; each is named."""

import json

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, build_llama
from safetensors.torch import load_file, save_file


def told(found, *parts):
    assert found.code == 1 and "Traceback" not in found.err
    lines = [line for line in found.err.splitlines() if line.startswith("peftrun: ")]
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines


@pytest.fixture
def rows(tmp_path):
    """Twelve rows, of which the seventh is another."""

    def write(seventh):
        texts = [{"prompt": f"z{n}", "completion": "q"} for n in range(12)]
        texts[6] = seventh
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
        return [f"task.data.path={tmp_path / 'rows.jsonl'}", "task.data.num_test_rows=2", "task.data.split_seed=1"]

    return write


def test_a_token_that_the_model_does_not_embed(cli, tmp_path, llama, on_tiny, rows):
    small = build_llama(tmp_path / "small", vocab_size=300)
    given = [*on_tiny(small), *rows({"prompt": "Is it spam or ham?", "completion": "no"})]
    told(cli(*given, *TINY_STEPS), "row 7: token 3", "is beyond the 300 embeddings of small", "restore the tokenizer")
    asked = cli(*given, "action=generate", "action.prompt='Is it spam or ham?'", "action.max_new_tokens=1")
    told(asked, "prompt 'Is it spam or ham?': token 3")


def test_a_text_longer_than_the_models_positions(cli, tmp_path, on_tiny, rows, gpt2):
    short = build_llama(tmp_path / "short", max_position_embeddings=40)
    given = [*on_tiny(short), *rows({"prompt": "x" * 40, "completion": "no"})]
    told(cli(*given, *TINY_STEPS), "row 7: has ", "short reads 40; type task.max_length=40")
    virtual = ["lora=prompt_tuning", "lora.num_virtual_tokens=8"]  # which take positions, too
    given = [*on_tiny(short), *rows({"prompt": "x" * 16, "completion": "no"})]
    assert cli(*given, "action=preview").code == 0
    for asked in (TINY_STEPS, ["action=preview"]):
        told(
            cli(*given, *virtual, *asked), "row 7: has ", "short reads 32 after 8 of the adapter", "task.max_length=32"
        )
    # GPT-2 has a table of positions, and nothing beyond it.
    made = cli(*on_tiny(gpt2), "action=save", "lora=prompt_tuning", "lora.num_virtual_tokens=200").run_dir
    asked = [*on_tiny(gpt2), "action=generate", f"adapter={made}", "action.max_new_tokens=99"]
    answered = cli(*asked, "action.prompt='Is 3 even?'")
    assert answered.code == 0, answered.err
    told(
        cli(*asked, f"action.prompt='{'x' * 60}'"),
        "tiny-gpt2 has 56 positions, including those of the answer; shorten it",
    )


def test_so_does_a_preference(cli, tmp_path, on_tiny):
    short = build_llama(tmp_path / "short", max_position_embeddings=40)
    pairs = [{"prompt": f"{n}?", "chosen": "y", "rejected": "n"} for n in range(12)]
    pairs[6]["rejected"] = "z" * 40
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    given = [
        *on_tiny(short), "task=dpo", "task.data.source=file", f"task.data.path={tmp_path / 'pairs.jsonl'}", "task.messages_column=null",
        "task.prompt_template='{prompt}'", "task.data.num_test_rows=2",
    ]  # fmt: skip
    told(cli(*given, *TINY_STEPS), "row 7: has ", "reads 40")


def test_a_row_in_which_nothing_is_learned(cli, tmp_path, bert):
    rows = [{"words": ["Ana", "vive"], "tags": ["B-PER", "O"]} for _ in range(12)]
    rows = [row | {"words": [row["words"][0] * (n + 1), "vive"]} for n, row in enumerate(rows)]
    rows[6] = {"words": [" "], "tags": ["O"]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = cli(
        "model=pretrained", f"model.name_or_path={bert}", "task=ner", "task.data.source=file", f"task.data.path={tmp_path / 'rows.jsonl'}",
        "task.tokens_column=words", "task.tags_column=tags", "task.label_names=[O,B-PER]", "task.data.num_test_rows=2", "task.data.split_strategy=random",
        "device=cpu", "device.dtype=float32", *TINY_STEPS,
    )  # fmt: skip
    told(found, "row 7: nothing in it is learned, every label is masked", "raise task.max_length, or remove the row")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from encoders import build_bert

    return build_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


def test_a_tokenizer_with_nothing_to_pad_with(cli, tmp_path, on_tiny):
    folder = build_llama(tmp_path / "bare")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text())
            (folder / name).write_text(
                json.dumps({key: value for key, value in settings.items() if key not in ("eos_token", "pad_token")})
            )
    told(cli(*on_tiny(folder), *TINY_STEPS), "type 'model.special_tokens={eos: \"TOKEN\"}'")


def token_of(folder, text):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"][-1]


@cases("more", [[], ["trainer.padding_free=true"], ["trainer.packing=true"]])
def test_a_loss_that_is_no_number_names_its_row(cli, tmp_path, on_tiny, rows, more):
    """One token of the vocabulary has lost its embedding; one row holds it."""
    folder = build_llama(tmp_path / "torn", tie_word_embeddings=False)
    given = rows({"prompt": "call ~", "completion": "no"})
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token_of(folder, "~")] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = cli(
        *on_tiny(folder), *given, *more, "trainer.max_steps=-1", "trainer.num_train_epochs=1", "trainer.warmup_steps=0",
        "trainer.per_device_train_batch_size=2", "trainer.logging_steps=100",
    )  # fmt: skip
    told(found, "the loss is nan at step ", "rows.jsonl: rows ", " 7", "nothing was saved. Lower trainer.learning_rate")
    assert not (found.run_dir / "adapter").exists()


def test_a_held_out_loss_that_is_no_number_names_its_row(cli, tmp_path, on_tiny, rows):
    folder = build_llama(tmp_path / "torn", tie_word_embeddings=False)
    given = rows({"prompt": "call ~", "completion": "q"})
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token_of(folder, "~")] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = cli(*on_tiny(folder), *given, *TINY_STEPS, "task.data.split_strategy=last", "task.data.num_test_rows=8")
    told(found, "the evaluation loss before training is nan at ", "row 7", "nothing was saved")


def test_a_learning_rate_without_sense(cli, llama, on_tiny):
    found = cli(*on_tiny(llama), "trainer.max_steps=30", "trainer.warmup_steps=0", "trainer.learning_rate=1e30")
    told(found, "the loss is nan at step 2, in a batch of ", "Lower trainer.learning_rate (now 1e+30)")
