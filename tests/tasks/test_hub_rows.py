"""Datasets of the Hub: their configurations, splits and commits. A folder with the Hub's own description of itself stands for one."""

import json

import pytest
from cases import cases
from faults import check_failed, check_refused

from peftrun.composition.compose import compose_run
from peftrun.composition.spec import build_spec
from peftrun.tasks import describe_source, row_cache
from peftrun.tasks.examples import load_examples
from peftrun.tasks.row_counts import Tally

COMMIT = "a" * 40
CARD = """---
configs:
- config_name: sums
  data_files: [{split: train, path: sums/train.jsonl}, {split: test, path: sums/test.jsonl}]
- config_name: names
  data_files: [{split: train, path: names/train.jsonl}, {split: short, path: names/short.jsonl}]
---
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "rows"
    for name, split, count in (
        ("sums", "train", 30),
        ("sums", "test", 8),
        ("names", "train", 20),
        ("names", "short", 5),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": f"{name} {split} {n}", "completion": f"{n}"} for n in range(count)]
        (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(CARD)
    return folder


def task_of(dataset, *more):
    where = ["task=instruction", "task.data.source=hub", f"task.data.path={dataset}", "task.data.num_test_rows=4"]
    return build_spec(compose_run([*where, *more]).cfg).task


def prompts(examples):
    return [one.given.messages[-1].text for one in examples]


def parts(examples):
    return {text.rsplit(" ", 1)[0] for text in prompts(examples)}


@pytest.fixture
def fetched(dataset, tmp_path, monkeypatch):
    """A name under which the Hub's own cache holds the same files, while the Hub is out of reach."""
    kept = tmp_path / "datasets--org--fetched"
    (kept / "snapshots").mkdir(parents=True)
    (kept / "snapshots" / COMMIT).symlink_to(dataset)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return "org/fetched"


def test_rows_of_one_configuration_are_read_and_named(dataset, fetched):
    for path in (dataset, fetched):
        task = task_of(path, "task.data.config_name=names")
        train, held_out = load_examples(task)
        assert (len(train), len(held_out)) == (16, 4) and parts([*train, *held_out]) == {"names train"}
        assert describe_source(task) == f"causal_lm rows of {path} (names)"
        some = load_examples(task_of(path, "task.data.config_name=names", "task.data.split='train[:50%]+short'"))
        assert [len(part) for part in some] == [11, 4]


def test_held_out_rows_are_those_of_another_split(dataset):
    tally = Tally()
    train, held_out = load_examples(
        task_of(dataset, "task.data.config_name=sums", "task.data.test_split=test"), tally=tally
    )
    assert tally.read == {f"task.data.path={dataset}": 30, f"task.data.path={dataset}, split test": 8}
    assert len(train) == 30 and parts(train) == {"sums train"}
    assert prompts(held_out) == [f"sums test {n}" for n in range(4)]


def test_a_further_source_has_a_configuration_and_a_split_of_its_own(dataset):
    more = f"task.data.mixture={{more: {{path: {dataset}, weight: 0.2, config_name: names, split: short}}}}"
    train, held_out = load_examples(task_of(dataset, "task.data.config_name=sums", "task.data.test_split=test", more))
    found = [text.rsplit(" ", 1)[0] for text in prompts(train)]
    assert (found.count("sums train"), found.count("names short")) == (25, 5)
    assert parts(held_out) == {"sums test"}


def test_rows_are_kept_as_tokens_only_where_every_source_is_a_commit(dataset, llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    given = ["task.data.config_name=sums", f"task.data.revision={COMMIT}"]
    more = "task.data.mixture={{more: {{path: org/rows, weight: 1.0{}}}}}"
    keys = [
        row_cache._build_cache_key(task_of(dataset, *given, *beside), tokenizer)
        for beside in (
            [],
            ["task.data.test_split=test"],
            ["task.data.config_name=names"],
            [more.format(f", revision: {COMMIT}")],
            [more.format("")],
            ["task.data.test_path=org/other"],
        )
    ]
    assert None not in keys[:4] and len(set(keys[:4])) == 4 and keys[4:] == [None, None]


@cases(
    "more, told",
    [
        (
            ["task.data.config_name=nosuch"],
            ["task.data.path=", "BuilderConfig 'nosuch' not found", "check it, task.data.config_name"],
        ),
        (["task.data.config_name=sums", "task.data.test_split=nosuch"], ["task.data.path=", "nosuch", "the split"]),
        ([], ["task.data.path=", "sums", "names", "task.data.config_name"]),
    ],
)
def test_a_part_that_is_not_there_is_told_in_one_line(cli, tmp_path, llama, on_tiny, dataset, more, told):
    where = ["task=instruction", "task.data.source=hub", f"task.data.path={dataset}"]
    check_failed(cli, tmp_path, [*on_tiny(llama), *where, *more], told)


@cases("given, told", [
        ("task.data.config_name=sums", "task.data.config_name=sums: is only for a dataset on the Hub; omit it, or type task.data.source=hub"),
        ("task.data.split=test", "task.data.split=test: is only for a dataset on the Hub"),
        ("task.data.test_split=test", "task.data.test_split=test: is only for a dataset on the Hub"),
        ("task.data.revision=main", "task.data.revision=main: is only for a dataset on the Hub"),
        (f"task.data.mixture={{more: {{path: {__file__}, weight: 1, config_name: b}}}}", "task.data.mixture.more: config_name, revision and split are only for a dataset on the Hub"),
    ])  # fmt: skip
def test_what_is_of_the_hub_is_refused_elsewhere(cli, tmp_path, llama, on_tiny, given, told):
    check_refused(cli, tmp_path, [*on_tiny(llama), given], [told])


@cases("key", ["group_column=prompt", "split_strategy=last"])
def test_rows_are_held_out_in_one_way(cli, tmp_path, llama, on_tiny, dataset, key):
    given = ["task=instruction", "task.data.source=hub", f"task.data.path={dataset}", "task.data.test_split=test", f"task.data.{key}"]  # fmt: skip
    check_refused(cli, tmp_path, [*on_tiny(llama), *given], [f"task.data.{key.split('=')[0]}", "test_split"])
