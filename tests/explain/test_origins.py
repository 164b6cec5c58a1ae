"""Every value has a source, and the source says that value."""

from pathlib import Path

import pytest
import yaml
from cases import cases
from omegaconf._utils import get_yaml_loader

from peftrun.composition import compose
from peftrun.composition.composer import Composer
from peftrun.config import paths
from peftrun.config import values as config
from peftrun.config_tools import minimal_overrides
from peftrun.config_tools import provenance as value_origins

CHOICES = [[], *([f"{group}={option}"] for group in paths.GROUPS for option in paths.list_group_options(group))]


@pytest.fixture(scope="module")
def compositions() -> Composer:
    return Composer()


def said(source: value_origins.ValueSource, key: str) -> object:
    """The value of the last part of `key` that stands in the source's file at its line."""
    lines = Path(str(source.path())).read_text().splitlines()[source.line - 1 :]
    depth = len(lines[0]) - len(lines[0].lstrip())
    end = next(
        (n for n, line in enumerate(lines) if n and line.strip() and len(line) - len(line.lstrip()) <= depth),
        len(lines),
    )
    block = yaml.load("\n".join(line[depth:] for line in lines[:end]), Loader=get_yaml_loader())
    last = key.rsplit(".", 1)[-1]
    found = [value for name, value in leaves(block) if name == last]
    assert len(found) == 1, (key, source, block)
    return found[0]


def leaves(values):
    """Name and value of everything in nested mappings that is no mapping, or an empty one."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value)
        else:
            yield str(name), value


@cases("overrides", CHOICES, ids=lambda given: given[0] if given else "default", every=11)
def test_every_key_comes_from_a_line_that_says_its_value(compositions, overrides):
    found = value_origins.trace_origins(compositions, overrides)
    values = config.flatten_keys(found.values)
    assert values.keys() == found.sources.keys() and values
    for key, source in found.sources.items():
        assert source.kind == value_origins.FILE and not source.place, (key, source)
        assert source.interpolated or minimal_overrides.is_same_value(
            said(source, key) if key != "adapter" else {}, values[key]
        ), key


@pytest.mark.slow
def test_it_is_what_the_command_line_composes(compositions):
    for overrides in CHOICES[::7]:
        given = [*overrides, "seed=3", "++params.a=1"]
        assert compositions.compose(given) == config.resolve_values(compose.compose_run(given).cfg)


def kinds(found, key):
    source = found.sources[key]
    return source.kind, source.text


def test_what_is_typed_wins_and_says_so(compositions):
    typed = [
        "experiment=ner",
        "lora=dora",
        "lora.r=4",
        "adapter=out",
        "++task.data.labels={0: a}",
        "task.label_names=[x,y]",
        "seed=0",
    ]
    found = value_origins.trace_origins(compositions, typed)
    assert kinds(found, "lora.r") == ("typed", "lora.r=4"), "also over experiment=ner, which sets it"
    assert kinds(found, "adapter.default") == ("typed", "adapter=out")
    assert kinds(found, "task.data.labels.0") == ("typed", "++task.data.labels={0: a}")
    assert kinds(found, "task.label_names") == ("typed", "task.label_names=[x,y]")
    assert kinds(found, "seed") == ("typed", "seed=0"), "also where it is the default"
    assert kinds(found, "lora.use_dora") == ("file", "lora/dora.yaml")
    assert kinds(found, "trainer.max_steps") == ("file", "experiment/ner.yaml")
    by = {one.group: (one.option, one.chosen_by) for one in found.choices}
    assert by["lora"] == ("dora", "typed") and by["task"] == ("ner", "by experiment=ner")
    assert by["trainer"] == ("default", "default") and by["experiment"] == ("ner", "typed")


def test_a_mapping_merges_and_what_is_deleted_is_gone(compositions):
    found = value_origins.trace_origins(compositions, ["task.data.labels.1=junk", "~task.data.labels.0"])
    assert found.values["task"]["data"]["labels"] == {"1": "junk"}
    assert kinds(found, "task.data.labels.1")[0] == "typed" and "task.data.labels.0" not in found.sources
    emptied = value_origins.trace_origins(compositions, ["task.data.labels=null"])
    assert kinds(emptied, "task.data.labels")[0] == "typed"


@pytest.fixture
def team(tmp_path):
    """Options of a team: one upon ours, values taken from elsewhere, an anchor, a file placed under another package."""
    files = {
        "lora/ours.yaml": "# Ours.\n# peftrun lora=ours\ndefaults:\n  - dora\n  - _self_\n\nr: 3\nlora_alpha: ${.r}\nrank_pattern: ${task.data.labels}\n",
        "task/data/small.yaml": "# @package task.data\n# Small.\n# peftrun +task/data=small\nnum_test_rows: 7\n",
        "experiment/x.yaml": (
            "# @package _global_\n# X.\n# peftrun experiment=x\ndefaults:\n  - /task/data: small\n  - override /lora: ours\n"
            "task:\n  data: {labels: {true: yes it is, 7: &seven seven}}\n  system_prompt: *seven\n  completion_template: '\\${no}'\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_teams_options_are_named_with_their_place(team):
    found = value_origins.trace_origins(Composer([f"file://{team}"]), ["experiment=x"])
    place = f"file://{team}"
    told = {key: (one.text, one.line, one.place, one.interpolated) for key, one in found.sources.items()}
    assert told["lora.r"] == ("lora/ours.yaml", 7, place, False)
    assert told["lora.lora_alpha"] == ("lora/ours.yaml", 8, place, True)
    assert told["lora.rank_pattern.7"] == ("lora/ours.yaml", 9, place, True)
    assert told["lora.use_dora"] == ("lora/dora.yaml", 8, "", False)
    assert told["task.data.num_test_rows"] == ("task/data/small.yaml", 4, place, False)
    assert told["task.data.labels.True"] == told["task.data.labels.7"] == ("experiment/x.yaml", 8, place, False)
    assert told["task.system_prompt"] == ("experiment/x.yaml", 9, place, False)
    assert told["task.completion_template"] == ("experiment/x.yaml", 10, place, False)
    assert found.sources["lora.lora_alpha"].describe() == f"${{…}} in lora/ours.yaml:8 in {team}"
    assert found.sources["lora.r"].path() == str(team / "lora/ours.yaml")
    assert {one.group: one.chosen_by for one in found.choices}["lora"] == "by experiment=x"
