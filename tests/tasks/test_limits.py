"""Rows that a model cannot read are named before the first step."""

import json

from conftest import TINY_STEPS, build_llama


def test_a_token_that_the_model_does_not_embed(cli, tmp_path, llama, on_tiny):
    small = build_llama(tmp_path / "small", vocab_size=300)
    found = cli(*on_tiny(small), *TINY_STEPS)
    assert found.code == 1 and "Traceback" not in found.err
    assert "writes tokens up to" in found.err and "embeds 300 (0 to 299)" in found.err


def test_a_text_longer_than_the_models_positions(cli, tmp_path, on_tiny):
    short = build_llama(tmp_path / "short", max_position_embeddings=16)
    found = cli(*on_tiny(short), *TINY_STEPS)
    assert found.code == 1 and "reads 16; type task.max_length=16" in found.err


def test_a_tokenizer_with_nothing_to_pad_with(cli, tmp_path, on_tiny):
    folder = build_llama(tmp_path / "bare")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text())
            (folder / name).write_text(
                json.dumps({key: value for key, value in settings.items() if key not in ("eos_token", "pad_token")})
            )
    found = cli(*on_tiny(folder), *TINY_STEPS)
    assert found.code == 1 and "neither a pad token nor an end token" in found.err


def test_a_completion_that_fills_the_row_and_a_loss_that_is_no_number(cli, llama, on_tiny):
    found = cli(
        *on_tiny(llama),
        "trainer.max_steps=30",
        "trainer.warmup_steps=0",
        "trainer.learning_rate=1000",
        "trainer.logging_steps=1",
    )
    assert found.code == 1 and (
        "the loss is nan" in found.err or "no finite" in found.err or "held-out loss" in found.err
    )
