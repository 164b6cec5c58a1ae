"""Rows that name their adapter: in one batch, each is answered as if it were alone with its adapter, or with the base."""

import json

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS
from faults import check_failed, check_refused
from merge_cases import FAMILIES, trained_adapter
from peft import PeftModel

from peftrun.adapters import mixed_batch

SHORT = "action.max_new_tokens=6"
PLAIN = {"r": 4, "target_modules": "all-linear", "lora_alpha": 32}
KINDS = {
    "plain": {"one": PLAIN, "two": {**PLAIN, "r": 2, "target_modules": ["q_proj", "embed_tokens"]}},
    "dora": {"one": PLAIN, "two": {**PLAIN, "use_dora": True}},
    "in full": {"one": PLAIN, "two": {**PLAIN, "modules_to_save": ["norm"]}},
}


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, tmp_path_factory, llama):
    """Paths of two adapters, of which one may be unfit to share a batch."""
    folder = tmp_path_factory.mktemp("pair")
    made = {
        name: trained_adapter(FAMILIES["llama"], llama, folder / name, settings, seed=seed)
        for seed, (name, settings) in enumerate(KINDS[request.param].items())
    }
    return request.param, made


def given(paths) -> str:
    return f"adapter={{{', '.join(f'{name}: {path}' for name, path in paths.items())}}}"


def rows_of(outcome):
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in (outcome.run_dir / "generations.jsonl").read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_logits_of_a_mixed_batch_are_those_of_each_row_alone(llama, loaded):
    kind, paths = loaded
    net = PeftModel.from_pretrained(
        FAMILIES["llama"].auto.from_pretrained(llama), str(paths["one"]), adapter_name="one"
    )
    net.load_adapter(str(paths["two"]), "two")
    net.eval()
    ids, names = torch.arange(40).view(5, 8) + 5, ["two", "base", "one", None, "two"]
    alone = []
    with torch.inference_mode():
        for row, name in zip(ids, names, strict=True):
            with mixed_batch.route_rows(net, [name]):
                alone.append(net(input_ids=row[None]).logits[0])
        plain = net.get_base_model()
        with net.disable_adapter():
            torch.testing.assert_close(alone[1], plain(input_ids=ids[1:2]).logits[0], rtol=0, atol=0)
        assert (alone[3] - alone[1]).abs().max() > 0.01  # None: the active adapter, one
        groups = mixed_batch.group_rows(net, names)
        assert groups == ([[0, 1, 2, 3, 4]] if kind == "plain" else [[0, 4], [1], [2], [3]])
        for group in groups:
            with mixed_batch.route_rows(net, [names[row] for row in group]):
                together = net(input_ids=ids[group]).logits
            for row, logits in zip(group, together, strict=True):
                torch.testing.assert_close(logits, alone[row], rtol=0, atol=1e-4)
    assert net.active_adapter == "one"


def test_answers_of_a_mixed_file_are_those_of_each_adapter(cli, tmp_path, llama, on_tiny, loaded):
    kind, paths = loaded
    names, texts = (
        ["two", "base", None, "one", "two"],
        ["hi", "a long prompt of many words", "Is it spam?", "yes", "call now"],
    )
    mixed = [{"prompt": text} | ({"adapter": name} if name else {}) for text, name in zip(texts, names, strict=True)]
    ask = [*on_tiny(llama), "action=generate", SHORT]
    together = cli(
        *ask, given(paths), f"action.prompts_file={write(tmp_path / 'mixed.jsonl', mixed)}", "action.batch_size=3"
    )
    rows = rows_of(together)
    assert [row["prompt"] for row in rows] == texts
    assert [row["adapter"] for row in rows] == ["two", "base", "one", "one", "two"]
    assert ("rows are answered adapter by adapter" in together.err) == (kind != "plain")
    (tmp_path / "all.txt").write_text("\n".join(texts))
    said = {}
    for name in ("one", "two", "base"):
        own = [] if name == "base" else [given(paths), f"active_adapter={name}"]
        alone = cli(*ask, *own, "action.prompts_file=all.txt", "action.batch_size=1")
        said[name] = {row["prompt"]: row["answer"] for row in rows_of(alone)}
    assert said["one"] != said["base"] != said["two"]
    for row in rows:
        assert row["answer"] == said[row["adapter"]][row["prompt"]]


def test_measures_of_mixed_rows_are_those_of_each_adapters_own_rows(cli, tmp_path, llama, on_tiny, loaded):
    _, paths = loaded
    names = ["one", "two", "base"]
    pairs = [
        {"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes", "who": names[n % 3]} for n in range(24)
    ]
    file = write(tmp_path / "rows.jsonl", pairs)
    held_out = [f"task.data.path={file}", f"task.data.test_path={file}"]
    settings = [
        *on_tiny(llama),
        "action=evaluate",
        "task.data.num_test_rows=24",
        "trainer.per_device_eval_batch_size=5",
    ]
    together = cli(*settings, *held_out, given(paths), "task.data.adapter_column=who")
    assert together.code == 0, together.err
    record = together.record()
    losses = {}
    for name in names:
        own = [] if name == "base" else [given(paths), f"active_adapter={name}"]
        part = write(tmp_path / f"{name}.jsonl", [row for row in pairs if row["who"] == name])
        alone = cli(*settings, f"task.data.test_path={part}", *own).record()["metrics"]
        found = record["per_adapter"][name]
        assert found.pop("rows") == 8
        assert found == pytest.approx(alone, rel=1e-4)
        losses[name] = alone["loss"]
    assert len({round(loss, 3) for loss in losses.values()}) == 3
    assert min(losses.values()) < record["metrics"]["loss"] < max(losses.values())


BAD = {
    "unknown adapter": (
        '{"prompt": "a"}\n{"prompt": "b", "adapter": "three"}',
        "row 2: adapter=three is not given; given: one, two, base",
    ),
    "not json": ("hello", "row 1: is not JSON ("),
    "no prompt": ('{"adapter": "one"}', "row 1: must be an object with a text or messages under prompt"),
    "prompt is no text": ('{"prompt": 3}', "row 1: must be an object with a text or messages under prompt"),
    "no object": ("[1]", "row 1: must be an object with a text or messages under prompt"),
    "other key": (
        '{"prompt": "a", "adaptor": "one"}',
        "row 1: adaptor is none of prompt, adapter and tools; remove it",
    ),
    "empty": ("\n", "holds no prompt"),
}


@cases("row", BAD, every=2)
def test_a_bad_row_is_refused_before_anything_is_loaded(cli, tmp_path, llama, trained, on_tiny, row):
    content, told = BAD[row]
    (tmp_path / "rows.jsonl").write_text(content)
    args = [
        *on_tiny(llama),
        "action=generate",
        given({"one": trained, "two": trained}),
        "action.prompts_file=rows.jsonl",
    ]
    check_refused(cli, tmp_path, args, ["action.prompts_file=rows.jsonl: ", told])


def test_base_is_no_name_for_an_adapter(cli, tmp_path, llama, trained, on_tiny):
    args = [*on_tiny(llama), "action=generate", given({"base": trained}), "action.prompt=hi"]
    check_refused(
        cli,
        tmp_path,
        args,
        ["adapter.base: is the name of the base model without any adapter", "give this adapter another name"],
    )


@pytest.mark.slow
def test_the_base_cannot_answer_beside_trained_biases(cli, tmp_path, llama, gpt2, on_tiny):
    biased = cli(*on_tiny(gpt2), *TINY_STEPS, "lora.bias=all").run_dir
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "a", "adapter": "one"}, {"prompt": "b", "adapter": "base"}])
    args = [*on_tiny(gpt2), "action=generate", given({"one": biased}), f"action.prompts_file={rows}"]
    check_failed(cli, tmp_path, args, ["adapter.one: replaces the base's biases", "omit rows of base"])


@cases(
    "more, told",
    [
        (
            ["action=train"],
            "task.data.adapter_column=who: is read by action=evaluate of a language model with adapters",
        ),
        (
            ["action=evaluate"],
            "task.data.adapter_column=who: is read by action=evaluate of a language model with adapters",
        ),
    ],
)
def test_a_column_of_adapters_without_adapters_is_refused(cli, tmp_path, llama, on_tiny, more, told):
    check_refused(
        cli, tmp_path, [*on_tiny(llama), "task.data.adapter_column=who", *more], [told, "task.data.adapter_column=null"]
    )


def test_a_column_that_names_an_unknown_adapter_is_refused(cli, tmp_path, llama, trained, on_tiny):
    pairs = [{"prompt": f"Is {n} even?", "completion": "no", "who": "three"} for n in range(20)]
    rows = [f"task.data.path={write(tmp_path / 'r.jsonl', pairs)}", "task.data.num_test_rows=8"]
    args = [*on_tiny(llama), *rows, "action=evaluate", given({"one": trained}), "task.data.adapter_column=who"]
    check_failed(
        cli, tmp_path, args, ["task.data.adapter_column: a row names three, which is not loaded; loaded: one, base"]
    )
