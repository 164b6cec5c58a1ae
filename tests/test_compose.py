"""Every option of every group composes and is a valid run; the public surface is frozen."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import yaml
from cases import cases, where_installed
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from peftrun.composition.spec import build_spec, build_spec_from_values
from peftrun.config import paths, shorthand
from peftrun.config import values as config
from peftrun.config.yaml_files import load_plain
from peftrun.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
DOCS = paths.config_dir().parent / "docs"
INTENDED = "if this change is intended, make it in tests/golden/{} too, in the order of the code"
NEEDED = {
    "model=pretrained": ["model.name_or_path=org/name"],
    "task=instruction": ["task.data.source=hub", "task.data.path=org/rows"],
}
NEEDED |= {f"task={kind}": NEEDED["task=instruction"] for kind in ("chat", "plain_text", "preferences")}
NEEDED |= {f"action={name}": ["adapter=ADAPTER"] for name in ("reload", "merge", "unmerge", "inspect", "export")}
NEEDED |= {f"action={name}": ["adapter={a: ADAPTER, b: ADAPTER}"] for name in ("diff", "combine")}
NEEDED |= {
    "action=extract": ["action.finetuned_model=MODEL"],
    "action=replay": ["run=ADAPTER"],
    "action=template": ["path=new_templates"],
    "action=import": ["from=ADAPTER"],
    "action=compare": ["runs=[ADAPTER, ADAPTER]"],
}
NEEDED["task=lm_eval"] = ["action=evaluate", "task.lm_eval.tasks=[arc_easy]"]
NEEDED["device=offload"] = ["action=evaluate"]
NEEDED["lora=loftq"] = ["model.quantization=nf4"]
SPREAD = ("device=ddp", "device=fsdp", "device=deepspeed", "device=offload")
PLAIN = ("lora", "rslora", "lora_rank_pattern")
REFUSED = {("action=extract", f"lora={name}") for name in paths.list_group_options("lora") if name not in PLAIN}
REFUSED |= {
    ("action=save", f"lora={name}") for name in ("none", "eva", "corda", "lora_ga")
}  # see test_bad_input, test_methods
OPTIONS = [(group, option) for group in paths.GROUPS for option in paths.list_group_options(group)]


@pytest.fixture(scope="module", autouse=True)
def _hydra():
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        yield


def built(overrides, trained):
    model = Path(str(config.read_values(trained / "config.yaml")["model"]["name_or_path"]))
    overrides = [item.replace("ADAPTER", str(trained)).replace("MODEL", str(model)) for item in overrides]
    overrides = shorthand.expand_shorthand(overrides)
    with where_installed():
        return build_spec(compose("config", overrides=overrides))


@cases("group, option", OPTIONS, every=5)
def test_each_option_is_a_valid_run(group, option, trained):
    choice = f"{group}={option}"
    if choice == "device=deepspeed":
        pytest.skip("needs a package: refused, see test_distributed")
    spec = built([choice, *NEEDED.get(choice, [])], trained)
    if group == "action":
        assert spec.action.name == option


def test_every_yaml_of_every_group_was_composed():
    count = sum(1 for group in paths.GROUPS for _ in (paths.config_dir() / group).glob("*.yaml"))
    assert len(OPTIONS) == count


@pytest.mark.slow
def test_actions_methods_and_devices_combine_freely(trained):
    actions, lora, devices = ([f"{g}={o}" for o in paths.list_group_options(g)] for g in ("action", "lora", "device"))
    devices = [
        one for one in devices if one not in SPREAD
    ]  # these suit some actions alone: test_distributed, test_offload
    some = ("action=save", "action=extract")  # those whose rules look at the method
    pairs = {*itertools.product(some, lora), *itertools.product(actions, devices)}
    assert pairs >= REFUSED, "REFUSED names options that are gone"
    for choices in sorted(pairs - REFUSED):
        built([*choices, *(item for choice in choices for item in NEEDED.get(choice, []))], trained)


def test_the_default_run_is_frozen():
    spec = build_spec(compose("config"))
    assert config.to_yaml(spec) == (GOLDEN / "default.yaml").read_text(), INTENDED.format("default.yaml")


def test_the_list_of_public_options_is_frozen():
    names = [f"{group}={option}" for group, option in OPTIONS]
    frozen = (GOLDEN / "options.txt").read_text().split()
    new, gone = [one for one in names if one not in frozen], [one for one in frozen if one not in names]
    assert names == frozen, f"new: {new}, gone: {gone}; {INTENDED.format('options.txt')}"


def test_the_pages_name_and_count_the_methods():
    methods = [one for one in paths.list_group_options("lora") if one != "none"]
    page = (DOCS / "methods.md").read_text()
    assert not (unnamed := [one for one in methods if f"`{one}`" not in page]), f"not in docs/methods.md: {unnamed}"
    counts = {  # file → the counts in it: of all methods, and of those besides the one that is named
        DOCS.parent / "README.md": [f"LoRA and {len(methods) - 1} other methods", f"one of {len(methods) - 1} more"],
        DOCS / "commands.md": [f"one of {len(methods) - 1} more"],
        DOCS / "peers.md": [f"{len(methods)} options"],
    }
    wrong = [f"{file.name}: {text}" for file, texts in counts.items() for text in texts if text not in file.read_text()]
    assert not wrong, f"make it say {'; '.join(wrong)}"


def test_the_config_read_back_is_the_config(tmp_path):
    spec = build_spec(compose("config", overrides=["lora.r=3", "trainer.learning_rate=1e-4", "task=sms_spam"]))
    (tmp_path / "config.yaml").write_text(config.to_yaml(spec))
    assert config.read_values(tmp_path / "config.yaml") == dataclasses.asdict(spec)


def test_a_saved_text_that_looks_like_an_interpolation_stays_one(tmp_path):
    typed = ["task=sms_spam", r"task.prompt_template='\${text} {text}'"]
    spec = build_spec(compose("config", overrides=typed))
    assert spec.task.prompt_template == "${text} {text}"
    (tmp_path / "config.yaml").write_text(config.to_yaml(spec))
    assert build_spec_from_values(config.read_values(tmp_path / "config.yaml")) == spec


def test_building_changes_nothing():
    cfg = compose("config")
    before = repr(cfg)
    build_spec(cfg)
    assert repr(cfg) == before


def test_a_team_folder_adds_options(tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "ours.yaml").write_text(
        "# Ours.\n# peftrun lora=ours\ndefaults:\n  - lora\n  - _self_\n\nr: 3\n"
    )
    cfg = compose("config", overrides=[f"hydra.searchpath=[file://{tmp_path}]", "lora=ours"])
    assert build_spec(cfg).lora.r == 3
    assert "ours" in paths.list_group_options("lora", tmp_path)


SCALARS = "a: 1e-4\nb: 1_0\nc: 012\nd: on\ne: 2020-01-01\nf: .5\ng: 1:30\nh: ~\ni: 'no'\nj: &x {k: 1}\nl: {<<: *x, m: é}\nn: 1\n"


def test_files_are_read_as_omegaconf_reads_them_and_none_sets_the_mode_of_hydra(tmp_path):
    """Or `hydra_app` would have to compose a run twice to learn of it."""
    (tmp_path / "scalars.yaml").write_text(SCALARS)
    for file in [tmp_path / "scalars.yaml", *paths.config_dir().rglob("*.yaml")]:
        values = load_plain(file)
        assert "mode" not in (values.get("hydra") or {}), file
        assert repr(values) == repr(OmegaConf.to_container(OmegaConf.load(file))), file
    (tmp_path / "twice.yaml").write_text(f"{SCALARS}n: 2\n")
    with pytest.raises(yaml.YAMLError, match=r"twice\.yaml[^$]*duplicate key n"):
        load_plain(tmp_path / "twice.yaml")


def test_an_interpolation_that_leads_nowhere_is_named():
    with pytest.raises(ConfigError, match=r"lora\.r"):
        build_spec(compose("config", overrides=["lora.r=${nowhere}"]))


def test_experiments_set_what_they_say():
    spec = build_spec(compose("config", overrides=["experiment=gpt2_classic"]))
    chosen = dataclasses.asdict(spec.lora)
    assert (chosen["r"], chosen["lora_alpha"], chosen["target_modules"]) == (8, 16, ["c_attn"])
    assert spec.model.name_or_path == "openai-community/gpt2"
