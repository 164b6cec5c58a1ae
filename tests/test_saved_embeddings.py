"""Adapters that PEFT saved with the base's embeddings beside them: they load where these are the base's own, and nowhere else."""

from functools import partial
from itertools import product

import pytest
import torch
from cases import cases
from conftest import build_llama
from faults import check_failed
from foreign_adapters import LLAMA, base_of, logits, made
from merge_cases import FAMILIES, reference, stored_base, streamed
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from peftrun.adapters import load
from peftrun.artifacts.adapter_folder import resolve_adapters
from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.errors import AdapterError
from peftrun.models import base as base_models
from peftrun.models import device

ADAPTED = [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"], []]
EMBEDDINGS = ("lm_head", "embed_tokens")
COPIES = tuple(f"{name}.{part}weight" for name in EMBEDDINGS for part in ("", "base_layer."))


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    return build_llama(folder, tie_word_embeddings=request.param == "tied")


def lora(targets, **more):
    return LoraConfig(**LLAMA | {"target_modules": ["q_proj", *targets]} | more)


def rewritten(folder, change):
    """The adapter with `change` made to every tensor of the base in its file."""
    file = folder / "adapter_model.safetensors"
    tensors = {key: value if "lora_" in key else change(value) for key, value in load_file(file).items()}
    save_file(tensors, file)
    return resolve_adapters({"default": str(folder)})


def other_row(value):
    value[3] += 0.1
    return value


@cases("targets, dora, saved", product(ADAPTED, [False, True], ["auto", True]))
def test_it_answers_as_when_it_was_saved_and_leaves_the_base_as_it_is(base, tmp_path, targets, dora, saved):
    answers = made(base, tmp_path / "a", lora(targets, use_dora=dora), save_embedding_layers=saved)
    held = [key for key in load_file(tmp_path / "a" / "adapter_model.safetensors") if "lora_" not in key]
    assert bool(held) == (saved is True or bool(targets))
    loaded = base_of(base)
    net, _ = load.load(loaded, resolve_adapters({"default": str(tmp_path / "a")}), None, False)
    assert torch.equal(logits(net), answers)


@cases("more", [{"modules_to_save": ["lm_head", "embed_tokens"]}, {"trainable_token_indices": [3, 4]}])
def test_embeddings_that_are_trained_are_the_adapters_own(base, tmp_path, more):
    answers = made(base, tmp_path / "a", lora([], **more), save_embedding_layers=True)
    net, _ = load.load(base_of(base), resolve_adapters({"default": str(tmp_path / "a")}), None, False)
    assert torch.equal(logits(net), answers)


# Embeddings among the adapter's targets, and those that it trains in full.
MERGED = [*product(ADAPTED, [[]]), *product([[]], [["lm_head"], ["embed_tokens", "lm_head"]])]
DTYPES = [torch.float32, torch.bfloat16]


@cases("tied, number", product([True, False], range(len(MERGED))))
def test_a_merge_takes_the_copies_from_the_base_and_what_changes_them_from_the_adapter(tmp_path, tied, number):
    family, (targets, whole), dtype = FAMILIES["llama"], MERGED[number], DTYPES[(number + tied) % 2]
    base = stored_base(family, tmp_path, dtype, build=partial(build_llama, tie_word_embeddings=tied))
    made(
        base, tmp_path / "a", lora(targets, modules_to_save=whole, use_dora=number % 2 == 0), save_embedding_layers=True
    )
    assert any(key.endswith(COPIES) for key in load_file(tmp_path / "a" / "adapter_model.safetensors"))
    expected, answers = reference(family, base, tmp_path / "a")
    found, merged = streamed(family, base, tmp_path / "a", tmp_path / "merged")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value.to(dtype), found[key]) for key, value in expected.items())
    if dtype == torch.float32:
        torch.testing.assert_close(merged, answers, atol=1e-4, rtol=1e-4)


@cases("targets", ADAPTED)
def test_other_embeddings_are_refused_with_the_reason(base, tmp_path, targets):
    made(base, tmp_path / "a", lora(targets), save_embedding_layers=True)
    with pytest.raises(AdapterError, match=r"differs from this base model's in 1 of .* trained, or resized") as refused:
        load.load(base_of(base), rewritten(tmp_path / "a", other_row), None, False)
    assert any(name in str(refused.value) for name in EMBEDDINGS)
    with pytest.raises(AdapterError, match="resized embeddings"):
        load.load(base_of(base), rewritten(tmp_path / "a", lambda rows: torch.cat([rows, rows[:5]])), None, False)


def test_embeddings_saved_in_another_precision_do_not_round_the_base(base, tmp_path):
    answers = made(base, tmp_path / "a", lora(["lm_head"]), save_embedding_layers=True)
    net, _ = load.load(base_of(base), rewritten(tmp_path / "a", torch.Tensor.half), None, False)
    assert torch.equal(logits(net), answers)


def test_it_loads_on_an_offloaded_base(base, tmp_path):
    answers = made(base, tmp_path / "a", lora(["lm_head"]), save_embedding_layers=True)
    overrides = ["device=offload", "device.type=cpu", "device.dtype=float32", "device.max_memory={cpu: 60KB}"]
    args = ["model=pretrained", f"model.name_or_path={base}", "action=evaluate", *overrides]
    spec = build_spec(compose.compose_run(args).cfg)
    split = base_models.load_base(spec.model, device.resolve_device(spec.device))
    assert any(one.is_meta for one in split.model.parameters())
    net, _ = load.load(split, resolve_adapters({"default": str(tmp_path / "a")}), None, False)
    torch.testing.assert_close(FAMILIES["llama"].logits(net), answers, atol=1e-5, rtol=1e-5)


def test_by_command_lines(cli, llama, tmp_path, on_tiny):
    made(llama, tmp_path / "a", lora(["embed_tokens"]), save_embedding_layers="auto")
    args = [*on_tiny(llama), f"adapter={tmp_path / 'a'}"]
    saved = cli(*args, "action=save", "action.output_dir=again")
    assert saved.code == 0, saved.err
    assert all("lora_" in key for key in load_file(tmp_path / "again" / "adapter_model.safetensors"))
    rewritten(tmp_path / "a", other_row)
    check_failed(
        cli, tmp_path, [*args, "action=reload"], ["embed_tokens", "differs from this base model's", "choose the base"]
    )
