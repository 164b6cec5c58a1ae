"""Rows: every format, templates, labels, balance, splits; the same seed gives the same rows."""

import json

import pytest
from cases import cases
from datasets import Dataset

from peftrun.composition.spec import build_spec
from peftrun.errors import DataError
from peftrun.tasks.examples import load_examples
from peftrun.tasks.messages import Conversation, make_message
from peftrun.tasks.row_counts import Tally

PAIRS = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(12)]
TEMPLATES = ["task.prompt_template='{question}'", "task.completion_template='{answer}'", "task.data.num_test_rows=3"]


def examples(path, *overrides, tally=None):
    from peftrun.composition.compose import compose_run

    chosen = [] if any(item.startswith("task=") for item in overrides) else ["task=instruction"]
    task = build_spec(compose_run([*chosen, f"task.data.path={path}", *overrides]).cfg).task
    return load_examples(task, tally=tally)


def write(folder, kind):
    file = folder / f"rows.{kind}"
    table = Dataset.from_list(PAIRS)
    if kind in ("csv", "tsv"):
        table.to_csv(file, sep="\t" if kind == "tsv" else ",", index=False)
    elif kind == "parquet":
        table.to_parquet(file)
    elif kind == "json":
        file.write_text(json.dumps(PAIRS))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return file


@cases("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    train, held_out = examples(write(tmp_path, kind), *TEMPLATES)
    assert {(e.given, e.completion) for e in [*train, *held_out]} == {
        (Conversation((make_message("user", f"q{n}"),)), f"a{n}") for n in range(12)
    }
    assert len(held_out) == 3


def test_text_files_are_rows_to_be_learned_as_they_are(tmp_path):
    (tmp_path / "book.txt").write_text("one line\nanother line\na third\n")
    train, held_out = examples(tmp_path / "book.txt", "task=plain_text", "task.data.num_test_rows=1")
    assert not any(e.given for e in train) and len(train) == 2 and len(held_out) == 1


def test_a_talk_is_given_but_for_its_last_answer(tmp_path):
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
    ]
    rows = [{"messages": [*talk, {"role": "assistant", "content": f"farewell {n}"}]} for n in range(4)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, _ = examples(tmp_path / "t.jsonl", "task=chat", "task.data.num_test_rows=1", "task.system_prompt='Be kind.'")
    assert [one["role"] for one in train[0].given.messages] == ["system", "user", "assistant", "user"]
    assert train[0].completion.startswith("farewell")


@cases("turns, overrides, told", [
        ("u", [], "row 1: has no message of the assistant"),
        ("u", ["task.loss_on=assistant"], "row 1: has no message of the assistant"),
        ("uau", [], "row 1: its last message has role user.* type task.loss_on=assistant to learn the answers before it, or fix or remove the row"),
        ("uau", ["task.loss_on=all"], "but task.loss_on=all learns .*; type task.loss_on=assistant"),
        ("uauu", ["task.loss_on=assistant"], None),
    ], ids=str)  # fmt: skip
def test_a_conversation_ends_with_the_answer_that_is_learned(tmp_path, capsys, turns, overrides, told):
    """What nobody answers is left off where answers are learned: it carries no loss."""
    roles = {"u": "user", "a": "assistant"}
    rows = [
        {"messages": [{"role": roles[turn], "content": f"{turn}{place}, {n}"} for place, turn in enumerate(turns)]}
        for n in range(3)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [tmp_path / "t.jsonl", "task=chat", "task.data.num_test_rows=1", *overrides]
    if told:
        with pytest.raises(DataError, match=told):
            examples(*asked)
        return
    train, held_out = examples(*asked)
    assert {one.completion for one in [*train, *held_out]} == {"a1, 0", "a1, 1", "a1, 2"}
    assert all([one["role"] for one in row.given.messages] == ["user"] for row in train)
    assert (
        "data: 3 of 3 conversations end with messages that have no answer; these are left off"
        in capsys.readouterr().err
    )


def test_training_and_held_out_rows_are_disjoint_and_follow_the_split_seed(tmp_path):
    file = write(tmp_path, "jsonl")
    one, same, other = (examples(file, *TEMPLATES, f"task.data.split_seed={seed}") for seed in (1, 1, 2))
    assert one == same != other
    assert not set(one[0]) & set(one[1])


def test_repeated_rows_are_left_out_unless_wanted(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS * 2))
    assert len(examples(file, *TEMPLATES)[0]) == 9
    assert len(examples(file, *TEMPLATES, "task.data.deduplicate=false")[0]) == 21


def labelled(tmp_path, *overrides):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"t{n}", "spam": int(n % 4 == 0)}) + "\n" for n in range(40)))
    template = [
        "task.prompt_template='{text}'",
        "task.completion_template='{label}'",
        "task.data.label_column=spam",
        "task.data.num_test_rows=4",
    ]
    return examples(file, *template, "task.data.labels={0: ham, 1: spam}", *overrides)


def test_labels_become_words_and_choices(tmp_path):
    train, held_out = labelled(tmp_path)
    assert {e.completion for e in train} == {"ham", "spam"}
    assert all(e.choices == ("ham", "spam") for e in [*train, *held_out])


def test_a_column_that_is_called_label_is_a_column(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"t{n}", "label": f"l{n}"}) + "\n" for n in range(3))
    )
    overrides = ["task.prompt_template='{text}'", "task.completion_template='{label}'", "task.data.num_test_rows=1"]
    train, held_out = examples(tmp_path / "rows.jsonl", *overrides)
    assert {e.completion for e in [*train, *held_out]} == {"l0", "l1", "l2"}


def test_balance_keeps_as_many_of_each(tmp_path, capsys):
    train, held_out = labelled(tmp_path, "task.data.balance=true")
    words = [e.completion for e in [*train, *held_out]]
    assert words.count("ham") == words.count("spam") == 10
    assert "data: 20 of 40 rows left out, so that no label is more frequent than the rarest" in capsys.readouterr().err
    labelled(tmp_path)
    assert "left out" not in capsys.readouterr().err


@cases("label", [None, " "])
def test_an_empty_label_names_its_row(tmp_path, label):
    rows = [{"text": "a", "spam": "1"}, {"text": "t", "spam": label}]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["task.completion_template='{label}'", "task.prompt_template='{text}'", "task.data.label_column=spam"]
    with pytest.raises(DataError, match=r"row 2: column spam is empty; fill it or remove the row"):
        examples(tmp_path / "odd.jsonl", *overrides)


def test_an_unknown_label_names_its_row(tmp_path):
    (tmp_path / "odd.jsonl").write_text(json.dumps({"text": "t", "spam": 7}) + "\n")
    overrides = [
        "task.completion_template='{label}'",
        "task.prompt_template='{text}'",
        "task.data.label_column=spam",
        "task.data.labels={0: ham, 1: spam}",
    ]
    with pytest.raises(DataError, match=r"row 1: spam=7 is not among task.data.labels \(0, 1\)"):
        examples(tmp_path / "odd.jsonl", *overrides)


def test_held_out_rows_can_have_a_file_of_their_own(tmp_path):
    file, other = write(tmp_path, "jsonl"), write(tmp_path, "csv")
    apart, split = Tally(), Tally()
    train, held_out = examples(file, *TEMPLATES, f"task.data.test_path={other}", tally=apart)
    assert len(train) == 12 and len(held_out) == 3
    assert apart.seen == [row.where for row in held_out]  # of the same content
    examples(file, *TEMPLATES, tally=split)
    assert not split.seen


def test_fewer_training_rows_on_request(tmp_path):
    assert len(examples(write(tmp_path, "jsonl"), *TEMPLATES, "task.data.num_train_rows=2")[0]) == 2


def test_braces_in_values_are_only_text(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"question": "{answer} {0}", "answer": "a"}) + "\n" + json.dumps(PAIRS[0]) + "\n"
    )
    train, held_out = examples(tmp_path / "rows.jsonl", *TEMPLATES[:2], "task.data.num_test_rows=1")
    assert "{answer} {0}" in {e.given.messages[0].text for e in [*train, *held_out]}


def test_the_default_task_is_the_real_data():
    from peftrun.composition.compose import compose_run

    train, held_out = load_examples(build_spec(compose_run([]).cfg).task)
    assert (len(train), len(held_out)) == (1034, 100)
    for part in (train, held_out):  # both balanced: a model that always says one word is right half the time
        assert 0.4 < sum(e.completion == "spam" for e in part) / len(part) < 0.6
