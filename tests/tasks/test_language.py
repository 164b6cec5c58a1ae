"""What a language model reads and learns: templates, talks, plain text, which tokens carry loss, what it writes."""

import json

import pytest
import sacrebleu
from cases import cases
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoTokenizer

from peftrun.composition.compose import compose_run
from peftrun.composition.spec import build_spec
from peftrun.errors import DataError
from peftrun.tasks import causal_lm, generation_metrics
from peftrun.tasks.examples import load_examples
from peftrun.tasks.length_checks import IGNORE_INDEX

TALK = [
    {"from": "human", "value": "Is it spam?"},
    {"from": "gpt", "value": "yes"},
    {"from": "human", "value": "Is it good?"},
    {"from": "function_call", "value": "call now"},
    {"from": "observation", "value": "a prize"},
    {"from": "gpt", "value": "no, bad"},
]


def write(folder, *rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def task_of(file, *overrides):
    return build_spec(compose_run([*overrides, f"task.data.path={file}", "task.data.num_test_rows=1"]).cfg).task


def talks(tmp_path, *overrides):
    file = write(tmp_path, {"messages": TALK}, {"messages": TALK[:2]})
    return task_of(file, "task=chat", "task.data.split_strategy=last", *overrides)


def learned(row, tokenizer):
    """Texts of the runs of tokens that carry loss."""
    parts, now = [], []
    for token, label in zip(row.ids, row.labels, strict=True):
        if label != IGNORE_INDEX:
            assert label == token
            now.append(token)
        elif now:
            parts.append(tokenizer.decode(now))
            now = []
    return [*parts, *([tokenizer.decode(now)] if now else [])]


@cases(
    "loss_on, parts",
    [
        ("completion", ["no, bad<|im_end|>\n"]),
        ("assistant", ["yes<|im_end|>\n", "call now<|im_end|>\n", "no, bad<|im_end|>\n"]),
    ],
)
def test_what_of_a_talk_is_learned(tmp_path, llama, loss_on, parts):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    rows = causal_lm.load_rows(talks(tmp_path, f"task.loss_on={loss_on}"), tokenizer)
    assert learned(rows.train[0], tokenizer) == parts
    whole = tokenizer.decode(rows.train[0].ids)
    assert [whole.count(f"<|im_start|>{role}\n") for role in ("user", "assistant", "tool")] == [2, 3, 1]


def test_every_token_is_learned_on_request(tmp_path, llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    rows = causal_lm.load_rows(talks(tmp_path, "task.loss_on=all"), tokenizer)
    assert rows.train[0].labels == rows.train[0].ids
    assert rows.held_out[0].prompt  # what is measured is the answer all the same


def test_each_answer_of_a_held_out_talk_is_measured(tmp_path, llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    file = write(tmp_path, {"messages": TALK[:2]}, {"messages": TALK})
    rows = causal_lm.load_rows(
        task_of(file, "task=chat", "task.data.split_strategy=last", "task.loss_on=assistant"), tokenizer
    )
    assert [tokenizer.decode(row.completion) for row in rows.held_out] == [
        "yes<|im_end|>\n", "call now<|im_end|>\n", "no, bad<|im_end|>\n",
    ]  # fmt: skip
    assert [tokenizer.decode(row.prompt).count("<|im_start|>") for row in rows.held_out] == [2, 4, 6]


def test_a_template_that_rewrites_earlier_answers_is_told(tmp_path, llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.role + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    with pytest.raises(DataError, match=r"row 1: .*renders earlier answers differently.*type task.loss_on=completion"):
        causal_lm.load_rows(talks(tmp_path, "task.loss_on=assistant"), tokenizer)


def test_a_template_that_refuses_a_talk_names_the_row(tmp_path, llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"row 1: the model's chat template refuses .*no tools here"):
        causal_lm.load_rows(talks(tmp_path), tokenizer)


@cases("task, overrides", [
        ("dpo", ["task.messages_column=null", "task.prompt_template='{q}'", "task.chosen_column=a", "task.rejected_column=b"]),
        ("kto", ["task.messages_column=null", "task.prompt_template='{q}'", "task.completion_template='{a}'", "task.desirable_column=c"]),
        ("grpo", ["task.prompt_template='{q}'", "task.completion_template='{a}'", "task.data.label_column=null", "task.data.labels=null", "task.data.balance=false"]),
    ])  # fmt: skip
def test_so_does_one_that_refuses_a_preference(tmp_path, llama, task, overrides):
    from peftrun.tasks import import_task_module

    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
    rows = [{"q": f"good {n}", "a": f"a{n}", "b": f"b{n}", "c": n % 2 == 0} for n in range(4)]
    file = write(tmp_path, *rows, {"q": "bad", "a": "a", "b": "b", "c": True})
    spec = task_of(file, f"task={task}", "task.data.source=file", *overrides)
    with pytest.raises(DataError, match=r"row 5: the model's chat template refuses"):
        import_task_module(spec.type).load_rows(spec, tokenizer)


def test_a_column_that_may_be_empty_and_one_that_lies_deeper(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "", "meta": {"parts": ["one", "two"], "none": None}},
        {"instruction": "Add.", "input": "1 and 2", "meta": {"parts": ["three"], "none": None}},
        {"instruction": "Other.", "input": None, "meta": {"parts": ["four"], "none": None}},
    ]
    given = [
        "task=instruction",
        "task.prompt_template='{instruction}\n\n{input?}'",
        "task.completion_template='{meta.parts}'",
        "task.data.split_strategy=last",
    ]
    train, _ = load_examples(task_of(write(tmp_path, *rows), *given))
    assert [(one.given.messages[0].text, one.completion) for one in train] == [
        ("Add.", "one two"),
        ("Add.\n\n1 and 2", "three"),
    ]
    with pytest.raises(DataError, match=r"row 1: column input is empty; .*\{input\?\}: it may be empty"):
        load_examples(task_of(write(tmp_path, *rows), *given, "task.prompt_template='{input}'"))
    with pytest.raises(DataError, match=r"row 1: column meta.none is empty"):
        load_examples(task_of(write(tmp_path, *rows), *given, "task.prompt_template='{meta.none}'"))
    with pytest.raises(DataError, match=r"the data has no column 'meta\.nosuch'"):
        load_examples(task_of(write(tmp_path, *rows), *given, "task.prompt_template='{meta.nosuch}'"))


def test_the_last_rows_are_held_out_on_request(tmp_path):
    file = write(tmp_path, *({"prompt": f"p{n}", "completion": f"c{n}"} for n in range(10)))
    train, held_out = load_examples(task_of(file, "task=instruction", "task.data.split_strategy=last"))
    assert [one.completion for one in [*train, *held_out]] == [f"c{n}" for n in range(10)] and len(held_out) == 1


def test_long_texts_are_cut_into_rows_and_nothing_is_lost(tmp_path, llama, capsys):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    texts = ["The quick brown fox jumps over the lazy dog. " * 20, "call now to win a prize"]
    (tmp_path / "book.txt").write_text("\n".join(texts) + "\n")
    task = task_of(tmp_path / "book.txt", "task=plain_text", "task.max_length=32", "task.data.split_strategy=last")
    rows = causal_lm.load_rows(task, tokenizer)
    assert max(len(row.ids) for row in rows.train) == 32 and len(rows.train) > 5
    whole = [token for row in rows.train for token in row.ids]
    assert tokenizer.decode(whole, skip_special_tokens=True) == texts[0].strip() + " " * (texts[0] != texts[0].strip())
    assert all(row.labels[1:] == row.ids[1:] for row in rows.train)
    assert f"1 training texts make {len(rows.train)} rows" in capsys.readouterr().err


SAID = ["the cat sat on the mat", "a dog barks", "nothing"]
TRUE = ["the cat sat on a mat", "the dogs barked", "everything"]


def test_written_answers_are_measured_as_the_libraries_measure():
    found = generation_metrics.compute_text_metrics(["bleu", "chrf", "rouge_1", "rouge_l"], SAID, TRUE)
    assert found["bleu"] == sacrebleu.BLEU().corpus_score(SAID, [TRUE]).score > 0
    assert found["chrf"] == sacrebleu.CHRF().corpus_score(SAID, [TRUE]).score > 0
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for name, key in {"rouge_1": "rouge1", "rouge_l": "rougeL"}.items():
        each = [scorer.score(true, said)[key].fmeasure for said, true in zip(SAID, TRUE, strict=True)]
        assert found[name] == pytest.approx(100 * sum(each) / 3) and 0 < found[name] < 100
    assert generation_metrics.compute_text_metrics(["bleu", "rouge_2"], TRUE, TRUE) == {
        "bleu": pytest.approx(100),
        "rouge_2": pytest.approx(200 / 3),
    }


@pytest.mark.slow
def test_an_adapter_that_has_learned_writes_what_it_should(cli, llama, on_tiny):
    metrics = "task.metrics=[bleu,chrf,rouge_l]"
    given = [*on_tiny(llama), metrics, "task.max_new_tokens=4", "task.data.num_test_rows=8", "trainer.warmup_steps=0"]
    done = cli(*given, "trainer.max_steps=80", "trainer.per_device_train_batch_size=8", "lora.r=32")
    assert done.code == 0, done.err
    before, after = done.record()["metrics"]["before"], done.record()["metrics"]["after"]
    assert after["rouge_l"] > before["rouge_l"] + 20 and after["chrf"] > before["chrf"] + 20
    again = cli(*given, "action=reload", f"adapter={done.run_dir}")
    assert again.record()["metrics"] == pytest.approx(after)


@cases(
    "overrides, said",
    [
        (["task.loss_on=assistant"], "task.loss_on=assistant: needs conversations"),
        (["task=spanish_sentiment", "task.loss_on=all"], "task.loss_on=all: is only for language models"),
        (["task=spanish_sentiment", "task.metrics=[bleu]"], "task.metrics=[bleu]: compares generated texts"),
        (
            ["task=plain_text", "task.data.path=DATA", "task.metrics=[bleu]"],
            "plain text has none; type task.metrics=null",
        ),
        (["task.metrics=[blue]"], "task.metrics"),
        (
            ["task.data.split_strategy=last", "task.data.test_path=DATA"],
            "task.data.split_strategy=last: takes the end of a single source",
        ),
        (
            ["trainer.packing=true", "trainer.padding_free=true"],
            "trainer.padding_free=true: rows packed by trainer.packing=true are not padded",
        ),
        (["trainer.padding_free=true", "lora=prompt_tuning"], "needs one text per row"),
    ],
    every=2,
)
def test_what_cannot_be_is_refused(cli, llama, on_tiny, data, overrides, said):
    found = cli(*on_tiny(llama), *(one.replace("DATA", str(data)) for one in overrides))
    assert found.code == 1 and said in found.err and "Traceback" not in found.err
