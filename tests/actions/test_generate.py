"""action=generate: one prompt, a file of prompts, a talk; with the adapter the answers differ."""

import json
import os
import subprocess
import sys

import pytest
from conftest import jsonl

SHORT = "action.max_new_tokens=6"


def answers(outcome):
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in (outcome.run_dir / "generations.jsonl").read_text().splitlines()]


def test_a_prompt_is_answered_and_kept(cli, llama, on_tiny):
    outcome = cli(*on_tiny(llama), "action=generate", "action.prompt='Is 3 even?'", SHORT)
    assert answers(outcome)[0]["prompt"] == "Is 3 even?"
    assert answers(outcome)[0]["answer"] in outcome.out


def test_every_line_of_a_file_is_a_prompt(cli, tmp_path, llama, on_tiny):
    """A row of JSON may be a conversation."""
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    outcome = cli(*on_tiny(llama), "action=generate", "action.prompts_file=prompts.txt", SHORT)
    assert [row["prompt"] for row in answers(outcome)] == ["one", "two"]
    conversation = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "two"},
    ]
    jsonl(tmp_path / "rows.jsonl", [{"prompt": conversation}, {"prompt": conversation[:1]}, {"prompt": "one"}])
    ask = [*on_tiny(llama), "action=generate", "action.prompts_file=rows.jsonl", SHORT]
    found = answers(cli(*ask))
    assert found[0]["prompt"] == conversation and found[1]["answer"] == found[2]["answer"]
    jsonl(tmp_path / "rows.jsonl", [{"prompt": conversation[:2]}])
    wrong = cli(*ask)
    assert wrong.code == 1 and "column prompt ends with an answer" in wrong.err
    jsonl(tmp_path / "rows.jsonl", [{"prompt": "one", "completion": "yes"}] * 9)  # rows for training
    told = [line for line in cli(*ask).err.splitlines() if line.startswith("peftrun: ")]
    assert len(told) == 1 and "rows 1, 2, 3 and 6 others: completion is none of prompt" in told[0]


def test_the_adapter_changes_the_answer(cli, llama, on_tiny):
    trained = cli(*on_tiny(llama), "trainer.max_steps=150", "trainer.warmup_steps=0").run_dir
    ask = [*on_tiny(llama), "action=generate", "action.prompt='Is 3 even?'", SHORT]
    learned = ("yes", "no")
    assert answers(cli(*ask, f"adapter={trained}"))[0]["answer"].startswith(learned)
    assert not answers(cli(*ask))[0]["answer"].startswith(learned)


def test_sampling_follows_the_seed(cli, llama, on_tiny):
    ask = [*on_tiny(llama), "action=generate", "action.prompt=hi", SHORT, "action.temperature=1.5"]
    one, same, other = (answers(cli(*ask, f"seed={seed}")) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.slow
def test_a_talk_ends_at_an_empty_line(tmp_path, llama, on_tiny):
    done = subprocess.run(
        [sys.executable, "-m", "peftrun", *on_tiny(llama), "action=generate", SHORT],
        cwd=tmp_path, env=os.environ, input="hello\nand then?\n\n", capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "an empty line ends" in done.stderr
    rows = next(tmp_path.glob("outputs/generate/*/generations.jsonl")).read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == ["hello", "and then?"]
