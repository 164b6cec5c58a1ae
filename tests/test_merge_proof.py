"""The proof of a merge finds every fault of the files and of the merge itself, in each dtype, and refuses no sound merge."""

import gc
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import peft
import pytest
import torch
from cases import cases
from merge_cases import FAMILIES, model_spec, proved, stored_base, trained_adapter, written
from safetensors.torch import load_file, save_file

from peftrun.adapters.merge import streaming, verify
from peftrun.adapters.merge.job import MergeJob
from peftrun.adapters.merge.verify import WrittenModel
from peftrun.config.schema.actions import MergeAction
from peftrun.errors import ArtifactError, MemoryShortageError, ProofError
from peftrun.io import safetensors_header, safetensors_stream
from peftrun.models import base as base_models
from peftrun.models import memory_check
from peftrun.models.device import Device
from peftrun.planning.memory_fit import Headroom
from peftrun.system.free_memory import FreeMemory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SMALL = {"r": 2, "lora_alpha": 2}


def biased(build, folder):
    """The family's tiny model with biases that are not zero, as those of trained models."""
    out = build(folder)
    file = out / "model.safetensors"
    torch.manual_seed(1)
    save_file({key: value + 0.1 * torch.randn_like(value) if key.endswith("bias") else value for key, value in load_file(file).items()},
              file, {"format": "pt"})  # fmt: skip
    return out


def sound(tmp_path, dtype, family="gpt2", kind=peft.LoraConfig, settings=None):
    """A merge as it should be: PEFT's model, base, adapter, folder."""
    one = FAMILIES[family]
    base = stored_base(one, tmp_path, DTYPES[dtype], shard="40KB", build=partial(biased, one.build))
    settings = settings or SMALL | {"target_modules": ["c_attn", "c_fc"], "bias": "lora_only"}
    adapter = trained_adapter(one, base, tmp_path, settings, kind)
    folder = tmp_path / "merged"
    return written(base, adapter, folder), base, adapter, folder


def change(folder, name, values):
    """Writes other values of a tensor into the file that holds it."""
    (file,) = (one for one in safetensors_header.list_weight_files(folder) if name in load_file(one))
    tensors = load_file(file)
    save_file(tensors | {name: values(tensors[name]).contiguous()}, file, {"format": "pt"})


def tensor(folder, name):
    (value,) = (load_file(one)[name] for one in safetensors_header.list_weight_files(folder) if name in load_file(one))
    return value


WEIGHT, OTHER, BIAS = (
    f"transformer.h.{one}" for one in ("0.attn.c_attn.weight", "1.attn.c_attn.weight", "1.mlp.c_fc.bias")
)
UNTOUCHED = "transformer.h.1.attn.c_proj.weight"


def another_adapters_shard(base, adapter, folder):
    other = folder.parent / "other"
    again = trained_adapter(FAMILIES["gpt2"], base, other, SMALL | {"target_modules": ["c_attn", "c_fc"]}, seed=5)
    written(base, again, other / "merged")
    file = next(one for one in safetensors_header.list_weight_files(folder) if WEIGHT in load_file(one))
    shutil.copyfile(other / "merged" / file.name, file)


def swap(folder):
    one, two = tensor(folder, WEIGHT), tensor(folder, OTHER)
    change(folder, WEIGHT, lambda _: two)
    change(folder, OTHER, lambda _: one)


def cut(folder):
    file = safetensors_header.list_weight_files(folder)[0]
    file.write_bytes(file.read_bytes()[:-64])


def one_unit_off(value):
    out = value.clone()
    out.view(-1).view(torch.int16 if value.itemsize == 2 else torch.int32)[7] += 1
    return out


def halved(base, adapter, folder):
    other = folder.parent / "halved"
    shutil.copytree(adapter, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] / 2}))
    shutil.rmtree(folder)
    written(base, other, folder)


FAULTS = {
    "a shard of another adapter": another_adapters_shard,
    "a tensor left unmerged": lambda base, _, folder: change(folder, WEIGHT, lambda _: tensor(base, WEIGHT)),
    "a tensor scaled by 1.1": lambda base, _, folder: change(folder, WEIGHT, lambda value: value * 1.1),
    "another tensor scaled by 1.1": lambda base, _, folder: change(folder, UNTOUCHED, lambda value: value * 1.1),
    "one value off by a unit": lambda base, _, folder: change(folder, UNTOUCHED, one_unit_off),
    "two tensors swapped": lambda base, _, folder: swap(folder),
    "a bias of the base instead of the trained one": lambda base, _, folder: change(folder, BIAS, lambda _: tensor(base, BIAS)),
    "a file cut short": lambda base, _, folder: cut(folder),
    "half of alpha": halved,
}  # fmt: skip


@cases("fault, dtype", product(FAULTS, DTYPES))
def test_every_fault_of_the_files_is_found(tmp_path, dtype, fault):
    net, base, adapter, folder = sound(tmp_path, dtype)
    figures = proved(net, base, adapter, folder, dtype)
    assert figures["largest_layer_error"] < 1e-3 and figures["layers"] == 4
    FAULTS[fault](base, adapter, folder)
    with pytest.raises((ProofError, ArtifactError), match=r"merged files are not the adapter|truncated"):
        proved(net, base, adapter, folder, dtype)
    gc.collect()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


BIASES = {
    "IA3Config": {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"], "init_ia3_weights": False},
    "LoraConfig": SMALL | {"target_modules": ["c_attn"], "lora_bias": True},
    "GloraConfig": {"target_modules": ["query", "value"]},
    "RoadConfig": {"target_modules": ["query", "value"], "init_weights": False, "group_size": 8},
    "BeftConfig": {"target_modules": ["query", "value"]},
}  # fmt: skip


@cases("kind, dtype", product(BIASES, DTYPES))
def test_a_method_that_changes_biases_changes_them_in_the_merge(tmp_path, monkeypatch, dtype, kind):
    """A merge that took every bias from the base, as one of ours did, is found at the layer."""
    family = "gpt2" if "c_attn" in BIASES[kind]["target_modules"] else "bert"
    net, base, adapter, folder = sound(tmp_path, dtype, family, getattr(peft, kind), BIASES[kind])
    figures = proved(net, base, adapter, folder, dtype)
    assert any(not torch.equal(tensor(folder, key), tensor(base, key)) for key in biases_of(folder))
    assert figures["share_of_effect"] < (1e-3 if dtype == "float32" else 0.5)
    right = streaming.merge_layer

    def of_the_base(module, path, name, values, undo=False):
        kept = {key: value.clone() for key, value in values.items() if key == "bias"}
        return right(module, path, name, values, undo) | kept

    monkeypatch.setattr(streaming, "merge_layer", of_the_base)
    shutil.rmtree(folder)
    net = written(base, adapter, folder)
    with pytest.raises(ProofError, match="answers otherwise merged than adapted"):
        proved(net, base, adapter, folder, dtype)


def biases_of(folder):
    return [
        key
        for file in safetensors_header.list_weight_files(folder)
        for key in load_file(file)
        if re.search(r"(c_attn|query|value)\.bias$", key)
    ]


def test_a_layer_that_no_text_reaches_is_compared_too(tmp_path):
    net, base, _, folder = sound(tmp_path, "bfloat16")
    adapted, merged = net.get_base_model(), base_models.build_empty(folder, model_spec(folder))

    def summed():
        files = WrittenModel(
            net, "default", streaming.map_stored_tensors(adapted, base), streaming.map_stored_tensors(merged, folder)
        )
        files.compare_untouched(merged)
        return files

    figures = verify.check_written(summed())
    assert figures["layers"] == 0 and figures["summed"] == 8  # weights and biases of four layers
    change(folder, WEIGHT, lambda value: value * 1.1)
    with pytest.raises(ProofError, match=WEIGHT):
        verify.check_written(summed())


def test_layers_in_many_parts_and_threads_are_merged_and_proved_as_in_one(tmp_path, monkeypatch):
    settings = SMALL | {"target_modules": ["q_proj", "down_proj"]}
    net, base, adapter, folder = sound(tmp_path, "bfloat16", "llama", settings=settings)
    whole = {
        key: value for file in safetensors_header.list_weight_files(folder) for key, value in load_file(file).items()
    }
    threads = torch.get_num_threads()
    monkeypatch.setattr(safetensors_stream, "PIECE_VALUES", 100)
    torch.set_num_threads(3)
    try:
        parts = tmp_path / "parts"
        net = written(base, adapter, parts)
        for file in safetensors_header.list_weight_files(parts):
            safetensors_stream.drop_from_memory(file)
        for key, value in whole.items():
            assert torch.equal(tensor(parts, key), value), key
        figures = proved(net, base, adapter, parts, "bfloat16")
        assert figures["summed"] == figures["layers"] == 4 and figures["rounded"] == 0
        change(parts, "model.layers.1.mlp.down_proj.weight", one_unit_off)
        with pytest.raises(ProofError, match=r"down_proj.weight is not the sum"):
            proved(net, base, adapter, parts, "bfloat16")
        assert torch.get_num_threads() == 3  # the parts' threads compute alone, this one as before
    finally:
        torch.set_num_threads(threads)


def test_a_merge_computes_on_the_runs_gpu_if_its_pieces_fit_there(tmp_path, monkeypatch):
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(bytes(1000))
    gpu = Device("cuda", torch.bfloat16, "device cuda", is_typed=True)

    def job(place):
        ref = SimpleNamespace(weights=weights)
        return MergeJob(
            None, MergeAction("merge", "auto", None, True, 0), False, place, tmp_path, ref, "bfloat16", None
        )

    assert job(gpu).device.type == "cuda"
    for place in (
        replace(gpu, is_typed=False),
        gpu.offloaded({0: "1GiB"}),
        Device("cpu", torch.float32, ""),
        Device("mps", torch.float32, ""),
    ):
        assert job(place).device.type == "cpu"
        job(place).check_memory(1 << 40)
    free = Headroom((FreeMemory(1 << 30, "on this GPU"),))
    monkeypatch.setattr(memory_check, "get_gpu_headroom", lambda _: free)
    job(gpu).check_memory(1 << 20)
    with pytest.raises(MemoryShortageError, match=r"device=cuda: .* on this GPU; type device=cpu"):
        job(gpu).check_memory(1 << 30)
    job(replace(gpu, memory_check=False)).check_memory(1 << 30)
