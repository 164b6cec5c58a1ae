"""action=combine: one adapter of several, measured against their weighted sum; what PEFT gets wrong is refused or mended."""

import itertools
import json

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS
from faults import check_failed, check_refused
from merge_cases import FAMILIES, trained_adapter
from peft import LoraConfig, PeftModel
from peft.tuners.lora.config import ArrowConfig, BdLoraConfig, KasaConfig

from peftrun.adapters import combine
from peftrun.errors import AdapterError

FAMILY = FAMILIES["llama"]
WEIGHTS = {"a": 0.7, "b": -0.4}
SETTINGS = {
    "a": {"r": 3, "target_modules": ["q_proj", "down_proj"], "lora_alpha": 5},
    "b": {"r": 5, "target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 2}},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, llama):
    """Two adapters of different ranks, scalings and modules."""
    return {
        name: made(tmp_path_factory.mktemp(name), llama, number, **more)
        for number, (name, more) in enumerate(SETTINGS.items())
    }


def made(folder, base, seed=0, **settings):
    return trained_adapter(FAMILY, base, folder, settings, seed=seed)


def asked(paths, *more):
    given = ", ".join(f"{name}: {path}" for name, path in paths.items())
    return ["action=combine", f"adapter={{{given}}}", *more]


def changes(base, adapter) -> dict[str, torch.Tensor]:
    """ΔW of every parameter, as PEFT merges it in float32."""
    before = dict(FAMILY.auto.from_pretrained(base).named_parameters())
    merged = PeftModel.from_pretrained(FAMILY.auto.from_pretrained(base), str(adapter)).merge_and_unload()
    return {key: (value - before[key]).detach() for key, value in merged.named_parameters()}


def off(base, combined, paths, weights) -> float:
    """‖ΔW − Σ w·ΔW‖ ÷ ‖Σ w·ΔW‖ measured on dense matrices."""
    found, parts = changes(base, combined), {name: changes(base, path) for name, path in paths.items()}
    ideal = {key: sum(weights[name] * part[key] for name, part in parts.items()) for key in found}
    return (
        (sum((found[k] - ideal[k]).square().sum() for k in found) / sum(v.square().sum() for v in ideal.values()))
        .sqrt()
        .item()
    )


def test_cat_is_the_weighted_sum_whatever_ranks_scalings_and_modules(cli, pair, llama, on_tiny):
    outcome = cli(*on_tiny(llama), *asked(pair, "action.weights={a: 0.7, b: -0.4}"))
    assert outcome.code == 0, outcome.err
    figures = outcome.record()["combined"]
    assert figures["relative_error"] < 1e-6 and max(figures["relative_errors"].values()) < 1e-6
    assert off(llama, outcome.run_dir / "adapter", pair, WEIGHTS) < 1e-5
    config = json.loads((outcome.run_dir / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 8 and config["use_rslora"] is False
    on_bfloat16 = cli(*on_tiny(llama), "device.dtype=bfloat16", *asked(pair, "action.weights={a: 0.7, b: -0.4}"))
    assert on_bfloat16.record()["combined"]["relative_error"] < 1e-6, on_bfloat16.err


ALIKE = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"v_proj": 2}},
    {"rank_pattern": {"v_proj": 7}, "alpha_pattern": {"v_proj": 3}},
]
COMBINATIONS = ["linear", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "magnitude_prune"]


# `make test` takes each of the settings with another combination: 0, 6, 12, 18, 24 of the pairs.
@cases("settings, combination", itertools.product(ALIKE, COMBINATIONS), every=6)
def test_the_reported_error_is_that_of_what_was_written(cli, tmp_path, llama, on_tiny, combination, settings):
    """PEFT itself would scale the result of rank-stabilised adapters by √r once more, and write one rank for all modules."""
    same = {"r": 4, "target_modules": ["q_proj", "v_proj"], **settings}
    paths = {name: made(tmp_path / name, llama, seed, **same) for seed, name in enumerate("ab")}
    more = [] if combination in ("linear", "svd") else ["action.density=0.6"]
    outcome = cli(
        *on_tiny(llama),
        *asked(paths, f"action.combination_type={combination}", "action.weights={a: 0.7, b: -0.4}", *more),
    )
    assert outcome.code == 0, outcome.err
    error = outcome.record()["combined"]["relative_error"]
    assert off(llama, outcome.run_dir / "adapter", paths, WEIGHTS) == pytest.approx(error, rel=1e-3)
    assert 0.01 < error < 3.0
    warned = (
        f"action.combination_type={combination}: differs from " in outcome.err
        and "action.combination_type=cat, which is exact" in outcome.err
    )
    assert warned == (combination in ("linear", "svd"))


def test_an_svd_of_enough_rank_is_the_sum_and_of_less_rank_is_not(cli, pair, llama, on_tiny):
    errors = []
    for rank in (8, 4, 2):
        outcome = cli(*on_tiny(llama), *asked(pair, "action.combination_type=svd", f"action.rank={rank}"))
        assert outcome.code == 0, outcome.err
        errors.append(outcome.record()["combined"]["relative_error"])
    assert errors[0] < 1e-5 < errors[1] < errors[2]


def test_the_result_loads_with_proof_and_says_what_it_is_made_of(cli, pair, llama, on_tiny):
    outcome = cli(*on_tiny(llama), *asked(pair, "action.output_dir=both"))
    assert outcome.code == 0, outcome.err
    note = json.loads((outcome.run_dir.parents[2] / "both" / "peftrun.json").read_text())["combined"]
    assert note["combination"] == "cat" and {name: part["weight"] for name, part in note["adapters"].items()} == {
        "a": 1.0,
        "b": 1.0,
    }
    again = cli(*on_tiny(llama), "action=reload", "adapter=both")
    assert again.code == 0 and again.record()["adapters"][0]["saved_difference"] == 0.0


@pytest.mark.slow
def test_the_seed_decides_what_dare_drops(cli, tmp_path, llama, on_tiny):
    paths = {name: made(tmp_path / name, llama, seed, r=4, target_modules=["q_proj"]) for seed, name in enumerate("ab")}
    args = [*on_tiny(llama), *asked(paths, "action.combination_type=dare_linear", "action.density=0.5")]
    errors = [cli(*args, f"seed={seed}").record()["combined"]["relative_error"] for seed in (1, 1, 2)]
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.slow
@cases(
    "settings, told",
    [
        ({"use_dora": True}, "adapter.b: has use_dora, which no combination takes along"),
        ({"modules_to_save": ["norm"]}, "adapter.b: has modules_to_save, which no combination takes along"),
    ],
)
def test_what_a_combination_would_drop_is_refused(cli, tmp_path, pair, llama, on_tiny, settings, told):
    paths = {"a": pair["a"], "b": made(tmp_path / "b", llama, r=3, target_modules=["q_proj"], **settings)}
    check_failed(cli, tmp_path, [*on_tiny(llama), *asked(paths)], [told])


OWN_RULES = {
    "use_dora": True,
    "modules_to_save": ["norm"],
    "lora_bias": True,
    "alora_invocation_tokens": [5, 6],
    "trainable_token_indices": [5, 6],
    "target_parameters": ["q_proj.weight"],
    "use_qalora": True,
    "use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2),
    "kasa_config": KasaConfig(),
    "layer_replication": [[0, 2]],
    "arrow_config": ArrowConfig(),
}


@cases("key", OWN_RULES)
def test_whatever_is_not_in_the_factors_is_refused(key):
    """PEFT would drop it, or let the first adapter decide for the sum."""
    odd = LoraConfig(target_modules=["q_proj"])
    setattr(odd, key, OWN_RULES[key])
    for configs in ({"a": LoraConfig(), "b": odd}, {"b": odd, "a": LoraConfig()}):
        with pytest.raises(
            AdapterError, match=rf"^adapter\.b: has {key}, which no combination takes along; "
        ) as refused:
            combine.check_combinable(configs, "cat")
        assert ("leave it out" in str(refused.value)) == (key == "alora_invocation_tokens")


def test_settings_of_training_do_not_matter():
    plain = LoraConfig(
        target_modules=["q_proj"],
        init_lora_weights="eva",
        lora_dropout=0.1,
        exclude_modules=["v_proj"],
        revision="main",
    )
    combine.check_combinable({"a": plain, "b": LoraConfig()}, "cat")


def test_unequal_ranks_need_cat_or_svd(cli, tmp_path, pair, llama, on_tiny):
    args = [*on_tiny(llama), *asked(pair, "action.combination_type=linear")]
    check_failed(
        cli,
        tmp_path,
        args,
        ["action.combination_type=linear: needs adapters of equal ranks", "action.combination_type=cat"],
    )


def test_layers_that_only_one_of_them_changes_are_not_dropped(cli, tmp_path, llama, on_tiny):
    """PEFT takes `layers_to_transform` from the first adapter, and drops the others' layers without a word."""
    paths = {
        name: made(tmp_path / name, llama, r=3, target_modules=["q_proj"], layers_to_transform=[layer])
        for layer, name in enumerate("ab")
    }
    check_failed(
        cli,
        tmp_path,
        [*on_tiny(llama), *asked(paths)],
        ["layers.1.self_attn.q_proj: the combination would leave this module out"],
    )


def test_parts_that_cancel_out_are_refused(cli, tmp_path, pair, llama, on_tiny):
    args = [*on_tiny(llama), *asked({"a": pair["a"], "b": pair["a"]}, "action.weights={a: 1, b: -1}")]
    check_failed(cli, tmp_path, args, ["action.weights: the combination changes nothing", "choose other weights"])


@pytest.mark.slow
def test_adapters_of_another_base_are_refused(cli, tmp_path, trained, pair, gpt2, llama, on_tiny):
    from conftest import build_llama

    other = build_llama(tmp_path / "models" / "other", seed=9)
    theirs = cli(*on_tiny(other), *TINY_STEPS).run_dir
    args = [*on_tiny(llama), *asked({"a": trained, "b": theirs})]
    check_failed(cli, tmp_path, args, [f"{theirs / 'adapter'}: was made for base other", "choose that model"])


@cases(
    "overrides, told",
    [
        (
            ["adapter={a: A}"],
            ["adapter: action=combine combines several adapters", "type 'adapter={a: PATH, b: PATH}'"],
        ),
        (
            ["action.combination_type=ties"],
            ["action.density: action.combination_type=ties needs", "type action.density=0.5"],
        ),
        (
            ["action.density=0.5"],
            ["action.density=0.5: action.combination_type=cat keeps every weight", "omit action.density"],
        ),
        (["action.rank=4"], ["action.rank=4: only an svd chooses the rank", "omit action.rank"]),
        (
            ["action.weights={a: 1}"],
            ["action.weights: must name exactly the adapters (a, b)", "b is in only one of the two"],
        ),
        (["adapter={default: A, b: B}"], ["adapter.default: is the name of the result", "give this adapter another"]),
    ],
    every=2,
)
def test_wrong_settings_are_refused_before_the_run(cli, tmp_path, pair, llama, on_tiny, overrides, told):
    overrides = [
        text.replace("A}", f"{pair['a']}}}").replace(": A,", f": {pair['a']},").replace("B}", f"{pair['b']}}}")
        for text in overrides
    ]
    given = [] if overrides[0].startswith("adapter") else asked(pair)[1:]
    check_refused(cli, tmp_path, [*on_tiny(llama), "action=combine", *given, *overrides], told)
