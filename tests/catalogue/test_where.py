"""The language of `where`: it says what plain Python says, and what it cannot read it refuses in one line."""

import math
import random

import pytest
from cases import cases

from peftrun.artifacts import filter_parser
from peftrun.errors import ConfigError
from peftrun.results.catalog import filter_eval, query
from peftrun.results.catalog.columns import MEASURED, Columns
from peftrun.results.catalog.index import IndexedRun

FACTS = {
    "task": ["sms_spam", "ner", "Two Words", "8", None],
    "status": ["completed", "failed"],
    "rank": [4, 8, 16, None],
    "size": [10, 1500, 2_000_000, None],
    "metrics.after.exact_match": [0.0, 0.25, 0.9, float("nan"), None],
    "date": ["2026-10-31 23:59:59", "2026-11-01 00:00:00", "2026-11-01 12:30:00", "2026-12-24 18:00:00"],
    "run": ["outputs/train/a", "outputs/sweeps/s/b[1]", "/else/where"],
}
CONFIG = {
    "lora.r": [4, 8, 16],
    "lora.use_dora": [True, False],
    "lora.target_modules": ["all-linear", ["q_proj", "v_proj"], None],
    "trainer.learning_rate": [1e-4, 3e-4, 1e-3],
}
OPERATORS = {"=": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def runs(dice: random.Random, count: int) -> list[IndexedRun]:
    return [
        IndexedRun(f"/{number}", {key: dice.choice(own) for key, own in FACTS.items()} | {"action": "train"}, {key: dice.choice(own) for key, own in CONFIG.items()})
        for number in range(count)
    ]  # fmt: skip


def number(key: str, low: float, high: float):
    def made(dice: random.Random) -> tuple[str, str]:
        sign, value = dice.choice(list(OPERATORS)), dice.choice([low, high, (low + high) / 2])
        python = f"(v({key!r}) is not None and v({key!r}) {OPERATORS[sign]} {value!r})"
        if sign == "!=":
            python = f"not (v({key!r}) is not None and v({key!r}) == {value!r})"
        return f"{dice.choice([key, key.rpartition('.')[2]])}{space(dice)}{sign}{space(dice)}{value!r}", python

    return made


def words(key: str, values: list[str]):
    def made(dice: random.Random) -> tuple[str, str]:
        sign, value = dice.choice(list(OPERATORS)), dice.choice(values)
        typed = f'"{value}"' if " " in value or dice.random() < 0.3 else value
        python = f"(v({key!r}) is not None and v({key!r}) {OPERATORS[sign]} {value!r})"
        if sign == "!=":
            python = f"(v({key!r}) != {value!r})"
        return f"{key}{space(dice)}{sign}{space(dice)}{typed}", python

    return made


def others(dice: random.Random) -> tuple[str, str]:
    return dice.choice(
        [
            ("task=null", "v('task') is None"),
            ("exact_match != null", "v('metrics.after.exact_match') is not None"),
            ("use_dora=true", "v('lora.use_dora') is True"),
            ("lora.use_dora!=true", "v('lora.use_dora') is not True"),
            ("target_modules=q_proj", "isinstance(v('lora.target_modules'), list) and 'q_proj' in v('lora.target_modules')"),
            ("target_modules~PROJ", "isinstance(v('lora.target_modules'), list)"),
            ("task~SPAM", "v('task') == 'sms_spam'"),
            ("task~'*word*'", "v('task') == 'Two Words'"),
            ("run~'b[1]'", "'b[1]' in v('run')"),
            ("run~outputs/*", "v('run').startswith('outputs/')"),
            ("size>1MB", "v('size') is not None and v('size') > 10**6"),
            ("date>=2026-11-01", "v('date')[:10] >= '2026-11-01'"),
            ("date=2026-11-01", "v('date')[:10] == '2026-11-01'"),
            ("date<=2026-11", "v('date')[:7] <= '2026-11'"),
            ('date>"2026-11-01 12:00"', "v('date')[:16] > '2026-11-01 12:00'"),
            ("date<2026-11-01T12:00", "v('date')[:16] < '2026-11-01 12:00'"),
        ]
    )  # fmt: skip


ATOMS = [
    number("rank", 4, 8), number("lora.r", 8, 16), number("trainer.learning_rate", 1e-4, 3e-4), words("task", ["sms_spam", "Two Words", "zebra"]),
    words("status", ["completed", "failed"]), others, others,
]  # fmt: skip


def space(dice: random.Random) -> str:
    return dice.choice(["", " "])


def expression(dice: random.Random, depth: int) -> tuple[str, str]:
    """The same in both languages; parentheses wherever Python's would be needed, and now and then where not."""
    kind = dice.random()
    if depth == 0 or kind < 0.3:
        typed, python = dice.choice(ATOMS)(dice)
        return (f"({typed})" if dice.random() < 0.2 else typed), f"({python})"
    if kind < 0.45:
        typed, python = expression(dice, depth - 1)
        return f"{dice.choice(['not', 'NOT'])} ({typed})", f"(not {python})"
    joint = dice.choice(["and", "or"])
    parts = [expression(dice, depth - 1) for _ in range(dice.randint(2, 3))]
    typed = f" {dice.choice([joint, joint.upper()])} ".join(text if joint == "or" else f"({text})" for text, _ in parts)
    return typed, f"({f' {joint} '.join(python for _, python in parts)})"


@cases("seed", range(300))
def test_an_expression_finds_what_python_finds(seed):
    dice = random.Random(seed)
    found = runs(dice, 40)
    typed, python = expression(dice, 3)
    meets = filter_eval.compile_filter(filter_parser.parse_filter(typed), Columns(found, True), found)
    expected = [
        bool(eval(python, {"v": lambda key, run=run: run.facts.get(key, run.config.get(key))})) for run in found
    ]
    assert [meets(run) for run in found] == expected, typed


def test_and_binds_closer_than_or_and_not_closest():
    one = filter_parser.parse_filter("not a=1 and b=2 or c=3")
    assert isinstance(one, filter_parser.BoolOp) and one.joint == "or"
    inner = one.parts[0]
    assert (
        isinstance(inner, filter_parser.BoolOp)
        and inner.joint == "and"
        and isinstance(inner.parts[0], filter_parser.Not)
    )


@cases("typed, told", [
        ("", "a column is expected"),
        ("task", "after task one of"),
        ("task=", "after task= a value is expected"),
        ("=3", "a column is expected"),
        ("task=a task=b", "`and` or `or` is expected"),
        ("task=a and", "a column is expected"),
        ("and task=a", "a column is expected"),
        ("(task=a", "closing parenthesis is expected"),
        ("task=a)", "`and` or `or` is expected"),
        ("task='a", "a quote that is not closed"),
        ("task=a ! b", "no sign of this language"),
        ("task=(a)", "a value is expected"),
        ("not", "a column is expected"),
        ("(" * 5000 + "a=1" + ")" * 5000, "parentheses within each other"),
        ("not " * 5000 + "a=1", "parentheses within each other"),
        ("a=1;drop table runs", "`and` or `or` is expected"),
    ])  # fmt: skip
def test_what_cannot_be_read_is_one_line_that_points_at_the_place(typed, told):
    with pytest.raises(ConfigError) as caught:
        filter_parser.parse_filter(typed)
    (line,) = caught.value.lines
    assert told in line and "⟨here⟩" in line and line.startswith("action.where: ") and "type action.where=" in line
    assert len(line) < 250 and "\n" not in line


@cases("seed", range(200))
def test_noise_is_read_or_refused_and_nothing_else(seed):
    dice = random.Random(seed)
    typed = "".join(dice.choice(["task", "=", "(", ")", " and ", " or ", "not ", "<", "'", '"', "\\", "8", "~", "!", "ü", "\n", "=="]) for _ in range(12))  # fmt: skip
    try:
        filter_parser.parse_filter(typed)
    except ConfigError as fault:
        assert len(fault.lines) == 1 and "⟨here⟩" in fault.lines[0] and "\n" not in fault.lines[0]


FOUND = runs(random.Random(0), 60)


@cases(
    "typed, told",
    [
        ("exact_mtch>0.5", "did you mean exact_match?"),
        ("lora.rr=8", "did you mean lora.r?"),
        ("qqqqqqq=8", "columns are those of"),
        ("rank>many", "rank holds numbers; type rank>"),
        ("date>yesterday", "is no date; type date>2026-11-01"),
        ("status=compleet", "a status is one of completed, running, dead,"),
        ("status!=Fail", "type status!=failed"),
    ],
)
def test_a_column_that_is_not_there_is_told_with_the_nearest(typed, told):
    with pytest.raises(ConfigError) as caught:
        filter_eval.compile_filter(filter_parser.parse_filter(typed), Columns(FOUND, True), FOUND)
    assert len(caught.value.lines) == 1 and told in caught.value.lines[0]


@cases("name", [*MEASURED, "metrics.before.exact_match"])
def test_a_metric_that_no_run_has_measured_is_a_column_without_a_value(name):
    found = [IndexedRun("/a", {"status": "failed"}, {"lora.r": 8})]
    meets = filter_eval.compile_filter(filter_parser.parse_filter(f"{name}>0.9"), Columns(found, False), found)
    assert not meets(found[0])
    assert filter_eval.compile_filter(
        filter_parser.parse_filter(f"{name}=null and status!=null"), Columns(found, True), found
    )(found[0])


def test_a_short_name_of_two_columns_is_refused():
    found = [IndexedRun("/a", {}, {"model.name": 1, "tracker.name": 2})]
    with pytest.raises(ConfigError, match=r"several columns: model\.name, tracker\.name"):
        filter_eval.compile_filter(filter_parser.parse_filter("name=1"), Columns(found, True), found)


def none(value) -> bool:
    """Nan is no value either."""
    return value is None or (isinstance(value, float) and math.isnan(value))


@cases("by", ["rank", "-rank", "task", "exact_match", "-exact_match", "trainer.learning_rate", "run"])
def test_what_has_no_value_is_last_in_both_directions(by):
    columns = Columns(FOUND, True)
    value = columns.make_reader(by.removeprefix("-"))
    values = [value(run) for run in query.sort_runs(FOUND, by, columns)]
    known = [one for one in values if not none(one)]
    assert known == [one for one in values[: len(known)] if not none(one)]
    assert known == sorted(
        known, key=lambda one: one.lower() if isinstance(one, str) else one, reverse=by.startswith("-")
    )
