"""The command that is printed gives the identical config, whatever is in it."""

import dataclasses
import random
import shlex
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from cases import cases

from peftrun.composition import compose
from peftrun.composition.composer import Composer
from peftrun.config import override_syntax, paths, shorthand
from peftrun.config import values as config
from peftrun.config.schema import run as schema
from peftrun.config_tools import minimal_overrides
from peftrun.errors import ConfigError

SEED = 20260
GROUPS = [group for group in paths.GROUPS if group != "experiment"]
NASTY = [
    "", " ", "a b", " a ", "a,b", "{x}", "[x]", "null", "NULL", "true", "False", "inf", "nan", "1", "-1", "1e-05", ".5", "1_000", "0x1F", "yes",
    "it's", 'say "x"', "it's \"x\"", "'", '"', "''", "a\\", "a\\'", 'a\\"', "\\\\", "C:\\x\\", "${x}", "\\${x}", "a ${b} \\\\${c}\\", "${", "}${",
    "$HOME", "`x`", "#c", "key: value", "a=b", "a:b", "(x)", "f(x)", "~a", "+a", "--flag", "*", "&a", "!t", "@", "|", ">", "%s", "x\\n", "…", "\u2028",
    "line\nbreak", "\n", "a\r\nb", "tab\tx", "ñandú 😀", "\x07", "/a/b", "../x", '{"a": 1}', "oc.create:'x'",
]  # fmt: skip


@pytest.fixture(scope="module")
def compositions() -> Composer:
    return Composer()


def composed(overrides: list[str]) -> dict[str, Any]:
    return config.resolve_values(compose.compose_run(overrides).cfg)


def typed_again(command: str) -> dict[str, Any]:
    """What a shell makes of a command, composed."""
    return composed(shlex.split(command)[1:])


def value_of(kind: Any, draw: random.Random) -> Any:
    """A value that the type of a key in the schema allows, ranges aside."""
    if get_origin(kind) is Literal:
        return draw.choice(get_args(kind))
    if kind in (bool, int, float, str):
        made = {bool: [True, False], int: [0, 7, -3, 10**9], float: [1e-05, 0.0, 2.5, 1e20, -0.25], str: NASTY}
        return draw.choice(made[kind])
    if get_origin(kind) is list:
        return [value_of(get_args(kind)[0], draw) for _ in range(draw.randrange(3))]
    if get_origin(kind) is dict:
        return {draw.choice(NASTY): value_of(get_args(kind)[1], draw) for _ in range(draw.randrange(3))}
    if dataclasses.is_dataclass(kind):
        return {name: value_of(one, draw) for name, one in hints(kind).items()}
    return value_of(draw.choice(get_args(kind) or [str]), draw) if kind is not type(None) else None


def hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def owners(kind: Any) -> list[Any]:
    return [kind] if dataclasses.is_dataclass(kind) else [one for arg in get_args(kind) for one in owners(arg)]


def type_of(key: str, values: dict[str, Any]) -> Any:
    """The type of a key in the schema; that of the chosen option where several have it."""
    kinds: list[Any] = [schema.RunSpec]
    for name in key.split("."):
        held = [hints(owner)[name] for kind in kinds for owner in owners(kind) if name in hints(owner)]
        kinds = held or [
            get_args(kind)[1] for whole in kinds for kind in (whole, *get_args(whole)) if get_origin(kind) is dict
        ]
    return kinds[0]


def drawn(draw: random.Random, compositions: Composer) -> list[str]:
    """Options of some groups, and values of some keys."""
    chosen = draw.sample([*GROUPS, "experiment"], draw.choice([0, 0, 1, 1, 2, 3]))
    texts = [f"{group}={draw.choice(compositions.options(group))}" for group in chosen]
    values = compositions.compose(texts)
    keys = [
        key
        for key in config.flatten_keys(values)
        if "." in key and not key.startswith(("params", "template", "action"))
    ]
    for key in draw.sample(keys, draw.choice([0, 1, 2, 3, 6])):
        texts.append(override_syntax.quote_override(key, value_of(type_of(key, values), draw), "++"))
    return texts


def check(compositions: Composer, seed: int, cases: int) -> None:
    """Of random configs, that the command found for them is no longer than the one that made them, and makes them again."""
    draw = random.Random(seed)
    for _ in range(cases):
        overrides = drawn(draw, compositions)
        values = composed(overrides)
        found = minimal_overrides.search_overrides(compositions, (), values)
        assert minimal_overrides.is_same_value(typed_again(override_syntax.format_shell_command(found)), values), (
            overrides
        )
        assert len(found) <= len(overrides), (overrides, found)


@pytest.mark.slow
def test_the_printed_command_gives_the_identical_config(compositions):
    check(compositions, SEED, 8)


@pytest.mark.slow
def test_the_printed_command_gives_the_identical_config_a_hundred_times(compositions):
    check(compositions, SEED + 1, 100)


@cases("text", NASTY, ids=ascii)
def test_a_text_is_typed_as_it_is(compositions, text):
    for key, value in {
        "task.prompt_template": text,
        "task.data.mixture": {"a": {"prompt_template": text}},
        "task.metrics": [text, 1, "x"],
        "lora.rank_pattern": {"a": text},
        "params": {text: "v", "deep": {text: [1e-05, None, {"k": text}]}},
    }.items():
        command = override_syntax.format_shell_command([override_syntax.quote_override(key, value, "++")])
        found: Any = compositions.compose(shorthand.expand_shorthand(shlex.split(command)[1:]))
        for name in key.split("."):
            found = found[name]
        assert minimal_overrides.is_same_value(found, value), command


SMALLEST = [
    [],
    ["lora=dora"],
    ["lora=dora", "lora.r=4"],
    ["experiment=ner"],
    ["experiment=dpo", "lora=none", "seed=3"],
    ["experiment=dpo", "trainer=smoke", "lora.lora_bias=true"],
    ["action=reload", "adapter=out"],
    ["action=diff", "adapter={a: x, b: y}"],
    ["lora.target_modules=[a,b]", "trainer.learning_rate=1e-05"],
    ["task.data.labels=null"],
    ["++task.data.labels.2=z"],
    ["~task.data.labels.1"],
    ["lora.rank_pattern={q_proj: 16}"],
]


@cases("overrides", SMALLEST, ids=" ".join, every=5)
def test_the_smallest_set_is_what_a_person_would_type(overrides):
    found = minimal_overrides.find_minimal_overrides(composed(overrides))
    assert len(found) == len(overrides) and minimal_overrides.is_same_value(composed(found), composed(overrides))
    assert not found or override_syntax.format_shell_command(found).startswith(f"peftrun {shlex.quote(overrides[0])}")


STEPS = [
    (["lora=dora", "lora.r=4"], ["lora=dora", "lora.r=8"], ["lora.r=8"]),
    (["lora=dora", "lora.r=4"], ["lora=adalora"], ["lora=adalora"]),
    (["lora=adalora", "lora.init_r=9"], ["lora=dora", "lora.r=4"], ["lora=dora", "lora.r=4"]),
    (["adapter={a: x, b: y}", "action=diff"], ["action=reload", "adapter=z"], ["action=reload", "adapter=z"]),
    (["seed=1"], ["seed=1"], []),
    (["++params.a=1", "++params.b=2"], ["++params.a=1"], ["~params.b"]),
]


@pytest.mark.slow
@cases("one, other, steps", STEPS)
def test_what_leads_from_one_config_to_another(one, other, steps):
    start, target = composed(one), composed(other)
    found = minimal_overrides.find_minimal_overrides(target, start=start)
    if "adapter=z" not in steps:
        assert found == steps
    assert minimal_overrides.is_same_value(
        composed(minimal_overrides.add_overrides(minimal_overrides.find_minimal_overrides(start), found)), target
    )


def test_true_is_not_one_but_one_is_one_point_zero():
    assert minimal_overrides.is_same_value({"a": [1, {"0": 2.0}]}, {"a": [1.0, {0: 2}]})
    assert not any(
        minimal_overrides.is_same_value(*pair)
        for pair in [(1, True), (0, False), (None, False), ("1", 1), ([1], [1, 2])]
    )


def test_what_cannot_be_typed_is_refused(compositions):
    values = composed([])
    with pytest.raises(ConfigError, match="cannot be typed"):
        minimal_overrides.search_overrides(compositions, (), values | {"lora": None})


def test_a_key_that_is_not_there_differs_from_null_in_nothing():
    assert minimal_overrides.diff_values({"lora": {"r": 8, "x": None}}, {"lora": {"r": 4}}) == {"lora.r": (8, 4)}


def test_a_model_of_no_option_is_not_written_as_one_that_it_replaces(compositions):
    target = composed(["model=pretrained", "model.name_or_path=org/mine"])
    assert minimal_overrides.search_overrides(compositions, (), target, None) == [
        "model=pretrained",
        "model.name_or_path=org/mine",
    ]
