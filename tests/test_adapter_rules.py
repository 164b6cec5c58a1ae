"""Adapters that change their base: alone they answer as when they were saved, or are refused; nobody answers from a base that another has changed."""

import json

import pytest
import torch
from cases import cases
from conftest import build_gpt2, build_llama
from faults import check_refused
from foreign_adapters import GPT2, LLAMA, base_of, logits, made, randomized_biases
from peft import IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig, TrainableTokensConfig, VeraConfig
from peft.tuners.lora.config import KasaConfig
from safetensors.torch import load_file, save_file

from peftrun.adapters import load, mixed_batch, save
from peftrun.artifacts.adapter_folder import resolve_adapters
from peftrun.config.schema.method_traits import INITS
from peftrun.errors import AdapterError, PeftrunError, ProofError

TOKENS = {"task_type": "CAUSAL_LM"}
EXPERTS = {**TOKENS, "target_modules": []}
TOGETHER = "would answer from a changed base; load it alone"


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    return randomized_biases(build_gpt2(tmp_path_factory.mktemp("models") / "biased-gpt2"))


CHANGING = [
    ("init_lora_weights=pissa", {"init_lora_weights": "pissa"}),
    ("init_lora_weights=olora", {"init_lora_weights": "olora"}),
    ("kasa_config", {"kasa_config": KasaConfig()}),
    ("layer_replication", {"layer_replication": [[0, 2], [1, 2]]}),
]


@cases("words, settings", CHANGING, ids=lambda case: case[0])
def test_an_adapter_that_changes_its_base_stands_alone(llama, tmp_path, words, settings):
    answers = made(llama, tmp_path / "a", LoraConfig(**LLAMA, **settings))
    made(llama, tmp_path / "b", LoraConfig(**LLAMA))
    check_alone(llama, tmp_path, answers, words)


@cases("bias", ["all", "lora_only"])
def test_an_adapter_with_trained_biases_stands_alone(biased, tmp_path, bias):
    answers = made(biased, tmp_path / "a", LoraConfig(**GPT2, bias=bias))
    made(biased, tmp_path / "b", LoraConfig(**GPT2))
    check_alone(biased, tmp_path, answers, f"bias={bias}")


def qwen_like(folder):
    return randomized_biases(build_llama(folder, attention_bias=True))


@cases("build, settings", [(lambda at: randomized_biases(build_gpt2(at)), GPT2), (qwen_like, LLAMA)])
def test_trained_biases_are_merged(cli, tmp_path, on_tiny, build, settings):
    """No forward pass reads the base model's own: they are written before the layer is compared."""
    base = build(tmp_path / "base")
    for bias in ("all", "lora_only"):
        answers = made(base, tmp_path / bias, LoraConfig(**settings, bias=bias))
        merged = cli(*on_tiny(base), "action=merge", f"adapter={tmp_path / bias}")
        assert merged.code == 0, merged.err
        assert merged.record()["merge"]["streamed"] is True
        torch.testing.assert_close(logits(base_of(merged.run_dir / "merged").model), answers, rtol=0, atol=1e-4)


def check_alone(model, folder, answers, words):
    net, _ = load.load(base_of(model), resolve_adapters({"a": str(folder / "a")}), None, False)
    assert (logits(net) - answers).abs().max() < 1e-4
    with pytest.raises(AdapterError, match="omit rows of base") as refused:
        mixed_batch.group_rows(net, ["base", "base"])
    assert words in str(refused.value)
    for names in ("ab", "ba"):
        with pytest.raises(AdapterError) as refused:
            load.load(base_of(model), resolve_adapters({name: str(folder / name) for name in names}), None, False)
        (line,) = refused.value.lines
        assert line.startswith("adapter.a: ") and words in line and TOGETHER in line


@cases("init", ["lora_ga", "corda", "pissa_niter_4", "loftq", "from_a_newer_peft"], every=2)
def test_what_loading_cannot_repeat_is_refused(cli, llama, tmp_path, on_tiny, init):
    made(llama, tmp_path / "a", LoraConfig(**LLAMA))
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": init}))
    words = [f"adapter={tmp_path / 'a'}: ", f"init_lora_weights={init}", "path_initial_model_for_weight_conversion"]
    with pytest.raises(AdapterError) as refused:
        load.load(base_of(llama), resolve_adapters({"default": str(tmp_path / "a")}), None, False)
    assert len(refused.value.lines) == 1 and all(word in str(refused.value) for word in words)
    for action in ("reload", "merge", "export", "unmerge"):
        check_refused(cli, tmp_path, [*on_tiny(llama), f"action={action}", f"adapter={tmp_path / 'a'}"], words)


def test_vllm_takes_no_initialisation_that_changes_the_base(cli, llama, tmp_path, on_tiny):
    made(llama, tmp_path / "a", LoraConfig(**LLAMA, init_lora_weights="olora"))
    args = [*on_tiny(llama), "action=export", "action.target=vllm", f"adapter={tmp_path / 'a'}"]
    check_refused(
        cli, tmp_path, args, ["changes the base model (init_lora_weights)", "path_initial_model_for_weight_conversion"]
    )


def test_what_leaves_the_base_alone_stands_beside_others(llama, tmp_path):
    starts = {name: {"init_lora_weights": name} for name, init in INITS.items() if init.keeps_base} | {"plain": {}}
    answers = {
        n: made(llama, tmp_path / n, LoraConfig(**LLAMA, **more), seed) for seed, (n, more) in enumerate(starts.items())
    }
    net, _ = load.load(base_of(llama), resolve_adapters({name: str(tmp_path / name) for name in starts}), None, False)
    for name, expected in answers.items():
        net.set_adapter(name)
        assert (logits(net) - expected).abs().max() < 1e-4, name


def test_a_change_that_no_rule_knows_is_found_by_its_effect(llama, tmp_path, monkeypatch):
    """With all adapters off the base must answer as it did."""
    made(llama, tmp_path / "a", LoraConfig(**LLAMA, init_lora_weights="olora"))
    made(llama, tmp_path / "b", LoraConfig(**LLAMA))
    monkeypatch.setitem(INITS, "olora", INITS["gaussian"])
    with pytest.raises(ProofError, match="one of a, b changes the base"):
        load.load(base_of(llama), resolve_adapters({name: str(tmp_path / name) for name in "ab"}), None, False)


def check_reason(model, folder, names, *words):
    with pytest.raises(PeftrunError) as refused:
        load.load(base_of(model), resolve_adapters({name: str(folder / name) for name in names}), None, False)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "choose the base" not in str(refused.value) and "another architecture" not in str(refused.value)


UNLIKE = [
    (VeraConfig(**LLAMA, projection_prng_key=1), VeraConfig(**LLAMA, projection_prng_key=2), "PRNG"),
    (LoraConfig(**EXPERTS, target_parameters=["q_proj.weight"]), LoraConfig(**EXPERTS, target_parameters=["v_proj.weight"]), "target_parameters"),
    (TrainableTokensConfig(**TOKENS, token_indices=[5, 6]), TrainableTokensConfig(**TOKENS, token_indices=[7]), "cannot load two of them"),
]  # fmt: skip


@cases("one, other, words", UNLIKE, ids=lambda case: case[2])
def test_what_cannot_be_loaded_together_is_said_and_not_that_the_base_is_another(llama, tmp_path, one, other, words):
    for name, config in (("a", one), ("b", other)):
        made(llama, tmp_path / name, config)
        load.load(base_of(llama), resolve_adapters({name: str(tmp_path / name)}), None, False)
    check_reason(llama, tmp_path, "ab", "adapter.b", words, "alone")


@cases("names", [["plain", "tokens"], ["tokens", "plain"], ["tokens", "plain", "more"]])
def test_trained_tokens_and_adapters_without_any_are_loaded_and_saved_together(llama, tmp_path, names):
    """PEFT looks for trained tokens of every adapter."""
    kinds = {"plain": {}, "tokens": {"trainable_token_indices": [5, 6]}, "more": {"trainable_token_indices": [6, 7, 8]}}
    answers = {n: made(llama, tmp_path / n, LoraConfig(**LLAMA, **kinds[n]), seed) for seed, n in enumerate(names)}
    base = base_of(llama)
    net, _ = load.load(base, resolve_adapters({name: str(tmp_path / name) for name in names}), None, False)
    save.save(net, base, tmp_path / "again", untrained=set())
    again, proofs = load.load(
        base_of(llama), resolve_adapters({name: str(tmp_path / "again" / name) for name in names}), None, False
    )
    assert all(proof.saved_difference == 0.0 for proof in proofs)
    for name in names:
        for loaded in (net, again):
            loaded.set_adapter(name)
            assert torch.equal(logits(loaded), answers[name])


@cases("name", ["v1.2", "weight", "bias", "train", "keys", "layers", "0", "lora_A"])
def test_a_name_that_is_also_the_models_is_refused_as_a_name(llama, tmp_path, name):
    made(llama, tmp_path / "a", LoraConfig(**LLAMA))
    (tmp_path / name).symlink_to(tmp_path / "a")
    names = [name, "a"] if name in ("layers", "0", "lora_A") else [name]
    check_reason(llama, tmp_path, names, name, f"type {'adapter={v1_2: PATH}' if name == 'v1.2' else 'another'}")


@cases("kind", ["POLY", "MULTITASK_PROMPT_TUNING", "XLORA"])
def test_types_that_need_more_than_a_text_are_refused(cli, llama, tmp_path, on_tiny, kind):
    made(llama, tmp_path / "a", LoraConfig(**LLAMA))
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": kind}))
    if kind == "XLORA":  # PEFT saves the tensors of its adapters in folders below, and none beside the config
        save_file({}, tmp_path / "a" / "adapter_model.safetensors")
    for action in ("reload", "merge"):
        args = [*on_tiny(llama), f"action={action}", f"adapter={tmp_path / 'a'}"]
        check_refused(
            cli,
            tmp_path,
            args,
            [f"adapter={tmp_path / 'a'}: is of type {kind}, which needs", "use it with PEFT itself"],
        )


@cases("config", [
    LoraConfig(**LLAMA), LoraConfig(**LLAMA, alora_invocation_tokens=[5, 7]),
    LoraConfig(**LLAMA, layer_replication=[[0, 2], [1, 2]]), PromptTuningConfig(**TOKENS, num_virtual_tokens=2),
])  # fmt: skip
def test_a_merge_is_offered_only_of_what_can_be_merged(cli, llama, tmp_path, on_tiny, config):
    made(llama, tmp_path / "a", config)
    args = [*on_tiny(llama), f"adapter={tmp_path / 'a'}"]
    reloaded = cli(*args, "action=reload", "action.evaluate=false")
    assert reloaded.code == 0 and "peftrun action=generate" in reloaded.out, reloaded.err
    merged = cli(*args, "action=merge", "action.verify=false")
    assert ("peftrun action=merge" in reloaded.out) == (merged.code == 0), reloaded.out + merged.err


@cases("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(cli, llama, tmp_path, on_tiny, value):
    made(llama, tmp_path / "a", LoraConfig(**LLAMA))
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[1]
    tensors[name][0, 0] = value
    save_file(tensors, file)
    words = [name, "NaN or infinity", "train again with a lower learning rate"]
    check_reason(llama, tmp_path, "a", *words)
    for target in ("vllm", "hub", "gguf"):
        args = ["action=export", f"action.target={target}", f"adapter={tmp_path / 'a'}"]
        check_refused(cli, tmp_path, args, words)


@cases("config", [LoHaConfig, IA3Config, PromptTuningConfig])
def test_adapters_of_two_types_are_not_said_to_be_for_another_base(llama, tmp_path, config):
    more = {"feedforward_modules": []} if config is IA3Config else {}
    own = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4} if config is PromptTuningConfig else LLAMA | more
    made(llama, tmp_path / "a", LoraConfig(**LLAMA))
    made(llama, tmp_path / "b", config(**own))
    with pytest.raises(PeftrunError) as refused:
        load.load(base_of(llama), resolve_adapters({name: str(tmp_path / name) for name in "ab"}), None, False)
    assert str(refused.value).startswith("adapter.b: is of type ") and "load each alone" in str(refused.value)
