"""A config.yaml read line by line says what a YAML library says."""

import random

import pytest
import yaml
from cases import cases

from peftrun.config import values as config
from peftrun.results.catalog import flat_yaml

TEXTS = [
    "plain", "two words", "no", "null", "1e-3", "0x10", "12:30", "{prompt}", "a: b", "- x", "#", "it's", '"quoted"', "", " ", "~", "true", "007",
    "a very long text " * 12, "several\nlines\n\nof text\n", "tab\there", "ü → 漢字 🙂", "ends with:", "* glob", "&x", "!tag", "%", "@at", "`", "|", ">", "2026-11-25",
]  # fmt: skip
LEAVES = [None, True, False, 0, -3, 2.5, 1e-5, 1e22, float("inf"), [], {}, *TEXTS]


def value(dice: random.Random, depth: int):
    kind = dice.random()
    if depth < 3 and kind < 0.35:
        names = dice.sample(["r", "path", "a-b", "x.y", "no", "k1", "with space", "1"], dice.randint(0, 4))
        return {name: value(dice, depth + 1) for name in names}
    if kind < 0.5:
        return [dice.choice(LEAVES) if dice.random() < 0.8 else value(dice, 3) for _ in range(dice.randint(0, 3))]
    return dice.choice(LEAVES)


@cases("seed", range(150))
def test_whatever_peftrun_writes_is_read_as_the_library_reads_it(seed):
    dice = random.Random(seed)
    values = {name: value(dice, 0) for name in dice.sample(["lora", "task", "trainer", "seed", "params", "z"], 4)}
    text = config.values_to_yaml(values)
    assert flat_yaml.parse_flat_yaml(text) == flat_yaml.flatten_values(yaml.safe_load(text))


def test_a_real_config_is_read_line_by_line(trained):
    text = (trained / "config.yaml").read_text()
    assert (
        flat_yaml._parse_lines(text)
        == flat_yaml.parse_flat_yaml(text)
        == flat_yaml.flatten_values(config.read_values(trained / "config.yaml"))
    )


@cases("text", ["a: &x {b: 1}\nc: *x\n", "a:\n    b: 1\n    c: [1, 2]\n", "? a\n: 1\n", "a: |\n  one\n  two\nb: 2\n"])
def test_what_somebody_else_has_written_is_read_too(text):
    assert flat_yaml.parse_flat_yaml(text) == flat_yaml.flatten_values(yaml.safe_load(text))


@cases("text", ["- a\n", "just words\n", "a: [1\n"])
def test_what_is_no_mapping_is_refused(text):
    with pytest.raises((ValueError, yaml.YAMLError)):
        flat_yaml.parse_flat_yaml(text)
