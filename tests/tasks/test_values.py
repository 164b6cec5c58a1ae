"""Rows are learned as the file spells them: values are text unless a column has a type."""

import csv
import io
import json
import random
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache

import pyarrow as pa
import pytest
from cases import cases
from pyarrow import parquet

from peftrun.artifacts import prompts_file
from peftrun.composition.compose import compose_run
from peftrun.composition.spec import build_spec
from peftrun.data import templates
from peftrun.errors import ConfigError, DataError
from peftrun.tasks.examples import load_examples

LABELLED = ["task.data.label_column=of", "task.completion_template='{label}'"]


@cache
def task_of(*overrides):
    given = [f"task.data.path={__file__}", "task.data.num_test_rows=1", "task.data.split_strategy=last"]
    return build_spec(compose_run(["task=instruction", *given, *overrides]).cfg).task


def pairs(path, *overrides):
    """(prompt, completion) of each row, in the order of the file."""
    task = task_of(*overrides)
    train, held_out = load_examples(replace(task, data=replace(task.data, path=str(path))))
    return [(one.given.messages[-1].text if one.given else None, one.completion) for one in (*train, *held_out)]


def answers(path, *overrides):
    return [completion for _, completion in pairs(path, *overrides)]


def table(**columns):
    return pa.table({"prompt": [f"q{n}" for n in range(2)], **columns})


def write(file, content):
    if isinstance(content, pa.Table):
        if file.suffix == ".parquet":
            parquet.write_table(content, file)
        else:
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
                writer.write_table(content)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def rows_of(*values, key="completion"):
    """Lines of JSON that spell the values so."""
    return "".join(f'{{"prompt": "q{n}", "{key}": {value}}}\n' for n, value in enumerate(values))


HEAD = "prompt,completion\n"
TALK = '[{"role": "user", "content": "on 2024-01-01"}, {"role": "assistant", "content": "2024-01-02"}]'
AS_SPELLED = {
    "numbers of csv": ("r.csv", HEAD + "q1,007\nq2,012\nq3,1.50\n", [], ["007", "012", "1.50"]),
    "exponents and signs": ("r.csv", HEAD + "q1,1E5\nq2,+49170123\nq3,1_000\n", [], ["1E5", "+49170123", "1_000"]),
    "words for booleans": ("r.csv", HEAD + "q1,TRUE\nq2,False\nq3,yes\n", [], ["TRUE", "False", "yes"]),
    "words for nothing": ("r.csv", HEAD + "q1,NA\nq2,None\nq3,null\nq4,nan\n", [], ["NA", "None", "null", "nan"]),
    "an empty cell": ("r.csv", HEAD + "q1,\nq2,NA\n", ["task.completion_template='{completion?}'"], ["", "NA"]),
    "dates of csv": ("r.csv", HEAD + "q1,2024-01-01\nq2,01/02/2024\n", [], ["2024-01-01", "01/02/2024"]),
    "an ending in capitals": ("R.CSV", HEAD + "q1,007\nq2,8\n", [], ["007", "8"]),
    "tabs in capitals": ("R.TSV", "prompt\tcompletion\nq1\t007\nq2\t8\n", [], ["007", "8"]),
    "a byte order mark": ("r.csv", b"\xef\xbb\xbfprompt,completion\r\nq1,a\r\nq2,b\r\n", [], ["a", "b"]),
    "blanks at the edge": ("r.csv", HEAD + "q1, a \nq2,b\n", [], [" a ", "b"]),
    "a long cell": ("r.csv", HEAD + f"q1,{'x' * 200_000}\nq2,b\n", [], ["x" * 200_000, "b"]),
    "line ends in a cell": ("r.csv", b'prompt,completion\r\nq1,"a\r\nb\nc"\r\nq2,d\r\n', [], ["a\r\nb\nc", "d"]),
    "columns without a name": ("r.csv", ",prompt,completion,\n0,q1,a,\n1,q2,b,\n", [], ["a", "b"]),
    "quotes in a tsv": ("r.tsv", "prompt\tcompletion\n\"q1\t'a\nq2\t\"b\nq3\t\"c\"\n", [], ["'a", '"b', '"c"']),
    "dates of json": ("r.jsonl", rows_of('"2024-01-01"', '"2024-01-02T00:00:00"'), [], ["2024-01-01", "2024-01-02T00:00:00"]),
    "dates in objects": (
        "r.jsonl", rows_of('{"on": "2024-01-01"}', '{"on": "2024-01-02"}'), ["task.completion_template='{completion.on}'"], ["2024-01-01", "2024-01-02"],
    ),
    "dates in messages": ("r.jsonl", f'{{"messages": {TALK}}}\n' * 2, ["task=chat", "task.data.deduplicate=false"], ["2024-01-02"] * 2),
    "numbers of json": ("r.jsonl", rows_of("1", "2", "3.5", "1.50", "1e5", "-0"), [], ["1", "2", "3.5", "1.50", "1e5", "-0"]),
    "large numbers": ("r.jsonl", rows_of(2**64 + 1, "0.1234567890123456789", "9" * 5000), [], [str(2**64 + 1), "0.1234567890123456789", "9" * 5000]),
    "booleans and texts": ("r.jsonl", rows_of("true", "false", '"True"'), [], ["true", "false", "True"]),
    "a list in json": ("r.json", json.dumps([{"prompt": "q1", "completion": "007"}, {"prompt": "q2", "completion": 7}], indent=1), [], ["007", "7"]),
    "lines called json": ("r.json", rows_of("1.0", "1.00"), [], ["1.0", "1.00"]),
    "a column that comes late": ("r.jsonl", '{"prompt": "q1"}\n' + rows_of("7"), ["task.completion_template='{completion?}'"], ["", "7"]),
    "objects": ("r.jsonl", rows_of('{"ok": true, "x": null, "é": 1.50}', '{"other": []}'), [], ['{"ok": true, "x": null, "é": 1.50}', '{"other": []}']),
    "lists": ("r.jsonl", rows_of('["a", "b"]', '["a", null]', "[1, [2.0]]"), [], ["a b", '["a", null]', "[1, [2.0]]"]),
    "columns of an agent": (
        "r.jsonl", "".join(json.dumps({"id": n, "source": "s", "model": "m", "system_prompt": "p", "messages": json.loads(TALK)}) + "\n" for n in (1, 2)),
        ["task=chat", "task.data.deduplicate=false"], ["2024-01-02"] * 2,
    ),
    "labels that are booleans": ("r.jsonl", rows_of("true", "false", key="of"), [*LABELLED, "task.data.labels={true: yes, false: no}"], ["yes", "no"]),
    "labels with a nought": ("r.csv", "prompt,of\nq1,01\nq2,02\n", [*LABELLED, "task.data.labels={01: ham, 02: spam}"], ["ham", "spam"]),
    "labels that are numbers": ("r.jsonl", rows_of("1", "0", key="of"), [*LABELLED, "task.data.labels={0: ham, 1: spam}"], ["spam", "ham"]),
    "lines of a text": ("r.txt", "\ufeffone\u2028still one\ntwo\r\n", ["task=plain_text"], ["one\u2028still one", "two"]),
    "integers": ("r.parquet", table(completion=pa.array([2**63, 7], pa.uint64())), [], [str(2**63), "7"]),
    "floats": ("r.parquet", table(completion=pa.array([0.1, 1e16])), [], ["0.1", "1e+16"]),
    "narrow floats": ("r.arrow", table(completion=pa.array([0.1, 5], pa.float32())), [], ["0.1", "5.0"]),
    "booleans": ("r.parquet", table(completion=[True, False]), [], ["true", "false"]),
    "days": ("r.parquet", table(completion=[date(2024, 1, 1), date(2024, 1, 2)]), [], ["2024-01-01", "2024-01-02"]),
    "times": ("r.arrow", table(completion=[datetime(2024, 1, 1), datetime(2024, 1, 2, 3)]), [], ["2024-01-01T00:00:00", "2024-01-02T03:00:00"]),
    "times with a zone": ("r.parquet", table(completion=[datetime(2024, 1, 1, tzinfo=UTC)] * 2), [], ["2024-01-01T00:00:00+00:00"] * 2),
    "decimals": ("r.parquet", table(completion=[Decimal("1.50"), Decimal("0.00")]), [], ["1.50", "0.00"]),
    "objects of a column": (
        "r.parquet", table(completion=[{"n": 1, "on": date(2024, 1, 1)}, {"n": None, "on": None}]), [], ['{"n": 1, "on": "2024-01-01"}', '{"n": null, "on": null}'],
    ),
    "narrow floats in lists": ("r.parquet", table(completion=pa.array([[0.1], [0.5, None]], pa.list_(pa.float32()))), [], ["[0.1]", "[0.5, null]"]),
    "json of a column": ("r.parquet", table(completion=pa.array(['{"a": 1.50}', "[1]"], pa.json_())), [], ['{"a": 1.50}', "[1]"]),
}  # fmt: skip


# One of each kind of file is read as a data set of the Hub, too.
ON_HUB = ["numbers of csv", "quotes in a tsv", "numbers of json", "a list in json", "columns of an agent", "lines of a text", "days", "narrow floats"]  # fmt: skip


@cases("name", AS_SPELLED)
def test_rows_are_learned_as_the_file_spells_them(tmp_path, name):
    file, content, overrides, expected = AS_SPELLED[name]
    path = write(tmp_path / file, content)
    assert answers(path, *overrides) == expected
    if name in ON_HUB:
        assert answers(tmp_path, "task.data.source=hub", *overrides) == expected
        streamed = ["task.data.streaming=true", f"task.data.num_train_rows={len(expected) - 1}"]
        assert answers(tmp_path, "task.data.source=hub", *overrides, *streamed) == expected


REFUSED = {
    "a cell too many": ("r.csv", HEAD + "q1,A1,x\nq2,b\n", [], ["row 1 (line 2)", "cells=3", "header has 2", "quotes"]),
    "a cell too few": ("r.csv", HEAD + 'q1,"a\nb"\n\nq2\nq3,c\n', [], ["row 2 (line 5)", "cells=1", "header has 2"]),
    "a tab too many": ("r.tsv", "prompt\tcompletion\nq1\ta\nq2\tb\tc\n", [], ["row 2 (line 3)", "cells=3", "tab"]),
    "a quote that nothing closes": ("r.csv", HEAD + 'q1,a\nq2,"b\nq3,c\n', [], ["row 2 (line 3)", "quote"]),
    "a name twice": ("r.csv", "prompt,completion,prompt\nq1,a,b\n", [], ["column prompt twice", "rename"]),
    "not utf-8": ("r.csv", HEAD.encode() + b'q1,"a\nb"\nq2,\xc3\xa9 \xe9\n', [], ["cannot be read", "row 2, column completion, line 4, character 6: byte 0xe9", "save it as UTF-8"]),
    "lines that are not utf-8": ("r.jsonl", rows_of('"a"').encode() + b'{"\xff"}\n', [], ["(line 2, character 3: byte 0xff", "save it as UTF-8"]),
    "an empty cell": ("r.csv", HEAD + "q1,a\nq2,\n", [], ["row 2 (line 3): column completion is empty"]),
    "an empty label": ("r.csv", "prompt,of\nq1,1\nq2,0\nq3,\n", [*LABELLED, "task.data.labels={0: a, 1: b}"], ["row 3 (line 4): column of is empty"]),
    "a label spelled otherwise": ("r.csv", "prompt,of\nq1,01\nq2,1\n", [*LABELLED, "task.data.labels={1: a}"], ["row 1", "of=01", "in quotes"]),
    "half of a character": ("r.jsonl", rows_of('"a"', '"\\ud83d"'), [], ["line 2", "half of a character"]),
    "a line that is no object": ("r.jsonl", rows_of("1") + "[1]\n", [], ["line 2 is no object"]),
    "an object in place of a list": ("r.json", '{\n"data": []}', [], ["list of objects"]),
    "a column in no row": ("r.jsonl", rows_of("1", "2", key="answer"), [], ["task.completion_template: the data has no column 'completion'", "type 'task.completion_template=\"{answer}\"'"]),
    "bytes": ("r.parquet", table(completion=[b"a", b"b"]), [], ["row 1: column completion", "bytes"]),
    "bytes in an object": ("r.parquet", table(completion=[{"a": b"a"}] * 2), [], ["row 1: column completion", "bytes"]),
    "a duration": ("r.parquet", table(completion=[datetime(2024, 1, 2) - datetime(2024, 1, 1)] * 2), [], ["row 1: column completion", "timedelta"]),
    "a word without quotes": ("r.csv", HEAD + "q1,a\n", ["task.data.label_column=of", "task.data.labels={0: false}"], ["task.data.labels=", "false", "in quotes"]),
}  # fmt: skip


@cases("name", REFUSED)
def test_what_has_no_one_reading_is_refused(tmp_path, name):
    file, content, overrides, told = REFUSED[name]
    with pytest.raises((ConfigError, DataError)) as refused:
        answers(write(tmp_path / file, content), *overrides)
    assert len(refused.value.lines) == 1 and all(word in refused.value.lines[0] for word in told)


LOOKS_LIKE = ["007", "1.50", "1e5", "+1", "-0", "0x1F", "NA", "nan", "null", "None", "TRUE", "false", "no", "2024-01-01", "12:30", "[1]", '{"a": 1}',
              "a,b", "a;b", 'say "hi"', '"', "'", " a ", "\ufeffa", "a\u2028b", "a\x85b", "a\x0cb", "\x00", "é", "e\u0301", "😀", "\\n", "#", "=1+1"]  # fmt: skip
LINES = ["a\nb", "a\r\nb", "a\rb", "\n", "a\tb", '"a\n"']


def texts(draw, count, kind):
    """Texts that look like something else, and any characters but those that files of this kind cannot hold."""
    some = LOOKS_LIKE + ([] if kind == "tsv" else LINES)
    made = [draw.choice(some) if draw.random() < 0.6 else any_text(draw) for _ in range(count)]
    return [text.translate(dict.fromkeys(map(ord, "\t\r\n"))) if kind == "tsv" else text for text in made]


def any_text(draw):
    points = (
        draw.choice([draw.randrange(1, 0x250), draw.randrange(1, 0xD800), draw.randrange(0xE000, 0x110000)])
        for _ in range(draw.randrange(1, 9))
    )
    return "".join(map(chr, points))  # fmt: skip


def written(table, kind, draw):
    if kind == "parquet":
        return pa.Table.from_pylist(table)
    if kind == "json":
        return json.dumps(table, ensure_ascii=draw.random() < 0.5)
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) + "\n" for row in table)
    if kind == "tsv":
        return "".join(
            "\t".join(cells) + "\r\n" * (n % 2) + "\n" * (1 - n % 2)
            for n, cells in enumerate([table[0], *(row.values() for row in table)])
        )
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()  # fmt: skip


@cases("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_each_text_that_is_written_is_read_back(tmp_path, kind):
    draw = random.Random(f"values {kind}")
    for number in range(8):
        made = texts(draw, 60, kind)
        rows = [
            {"no": f"{n}", "prompt": f"-{a}-", "completion": f"-{b}-", "bare": a if a.strip() else "x"}
            for n, (a, b) in enumerate(zip(made[::2], made[1::2], strict=True))
        ]
        file = write(tmp_path / f"{number}.{kind}", written(rows, kind, draw))
        templates = ["task.prompt_template='{no}{prompt}'", "task.completion_template='{completion}{bare}|'"]
        expected = [(row["no"] + row["prompt"], row["completion"] + row["bare"] + "|") for row in rows]
        assert pairs(file, *templates) == expected  # fmt: skip


@cases(
    "name, content, expected",
    [
        ("p.txt", "one\u2028still one\ntwo\x85\x0cstill two\n", ["one\u2028still one", "two\x85\x0cstill two"]),
        ("p.txt", "\ufeffone\r\n\r\ntwo", ["one", "two"]),
        ("p.jsonl", '\ufeff{"prompt": "a\u2028b"}\n{"prompt": "007"}\n', ["a\u2028b", "007"]),
    ],
)
def test_a_prompt_ends_at_a_line_feed(tmp_path, name, content, expected):
    assert [one.content for one in prompts_file.read_prompts(str(write(tmp_path / name, content)), {})] == expected
    write(tmp_path / name, content.encode("utf-16"))
    with pytest.raises(DataError, match="UTF-8"):
        prompts_file.read_prompts(str(tmp_path / name), {})


@cases(
    "template, row, wanted",
    [
        ("{a}\n\n{b?}", {"a": " x ", "b": ""}, " x "),
        ("{a}\n\n{b?}", {"a": " x ", "b": " y\n"}, " x \n\n y\n"),
        ("{b?}\n{a} ", {"a": "x", "b": None}, "x "),
        (" {b?} ", {"b": "  "}, ""),
        ("{a}\n{b?}\nEnd", {"a": "x", "b": ""}, "x\n\nEnd"),
    ],
)
def test_a_column_that_may_be_empty_takes_no_blanks_of_another(template, row, wanted):
    assert templates.fill_template("row 1", template, row) == wanted
