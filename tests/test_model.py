"""Bases: folders, packages, the Hub; what they are by content; the dtype they are computed in."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from cases import cases
from conftest import build_gpt2, build_llama
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peftrun.adapters.merge import file_check
from peftrun.artifacts import base_location, fingerprint
from peftrun.config.schema.run import DeviceSpec, ModelSpec
from peftrun.errors import ArtifactError, DeviceError, ModelError
from peftrun.io import atomic_files, safetensors_header
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.models.device import Device
from peftrun.system import environment

CPU = Device("cpu", torch.float32, "")
ALONE = {
    "strategy": None, "num_processes": 1, "num_machines": 1, "machine_rank": 0, "main_process_ip": None, "main_process_port": 29500,
    "deepspeed_config": None, "deterministic": True, "tf32": False, "memory_check": True, "max_memory": None,
}  # fmt: skip


def spec(path, **changes):
    settings = {
        "package": None,
        "revision": None,
        "quantization": None,
        "attn_implementation": "sdpa",
        "trust_remote_code": False,
    }
    return ModelSpec(name_or_path=str(path), **settings | changes)


def test_a_folder_loads_frozen_in_the_dtype_asked_for(llama):
    base = base_models.load_base(spec(llama), CPU, torch.bfloat16)
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in base.model.parameters()) and not base.model.training
    assert base.name == "tiny-llama"


@cases("attention", ["eager", "sdpa"])
def test_the_attention_implementation_is_the_one_asked_for(llama, attention):
    base = base_models.load_base(spec(llama, attn_implementation=attention), CPU)
    assert base.model.config._attn_implementation == attention


def test_a_base_without_a_tokenizer_is_told(gpt2, tmp_path):
    bare = shutil.copytree(gpt2, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "vocab*", "merges*"))
    with pytest.raises(ModelError, match=r"holds no tokenizer; copy tokenizer\.json"):
        base_models.load_base(spec(bare), CPU)


def test_a_tokenizer_without_pad_token_pads_with_its_end(gpt2):
    assert base_models.load_base(spec(gpt2), CPU).tokenizer.pad_token == "<|endoftext|>"


def test_code_that_comes_with_a_model_is_not_run_unless_trusted(tmp_path, llama, monkeypatch):
    folder = tmp_path / "coded"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "made_up", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="trust_remote_code"):
        base_models.load_base(spec(folder), CPU)
    assert not (tmp_path / "ran").exists()
    offered = ["config.json", "code.py", "sub/more.py", "a.tiktoken", "adapter_config.json", "pytorch_model.bin"]
    fetched = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        fetched.append(
            (
                revision,
                sorted(filter_repo_objects(offered, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)),
            )
        )
        return folder

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for trusted in (False, True):
        base_models.resolve_base_dir(spec("org/coded", revision="a1", trust_remote_code=trusted))
    assert fetched == [
        ("a1", ["a.tiktoken", "config.json"]),
        ("a1", ["a.tiktoken", "code.py", "config.json", "sub/more.py"]),
    ]


@cases(
    "variable, inside",
    [("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_a_base_model_is_found_in_the_cache_of_the_hub_and_read_as_transformers_reads_it(
    llama, tmp_path, monkeypatch, variable, inside
):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    cached = tmp_path / inside / "models--org--tiny"
    folder = shutil.copytree(llama, cached / "snapshots" / "a1")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a1")
    assert base_location.find_base_config(spec("org/tiny")) == folder / "config.json"
    assert base_location.find_base_dir(spec("org/tiny", revision="a1")) == folder
    assert base_location.find_base_dir(spec("org/tiny", revision="b2")) is None
    monkeypatch.chdir(folder.parent)
    assert base_location.find_base_config(spec("a1", package="not_installed")) is None
    (folder / "other.safetensors").touch()
    (folder / safetensors_header.INDEX_FILE).write_text('{"weight_map": {"a": "other.safetensors"}}')
    assert safetensors_header.list_weight_files(folder) == [folder / "model.safetensors"]


def test_an_encoder_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a BertModel, not a causal language model"):
        base_models.load_base(spec(tmp_path), CPU)


def test_the_fingerprint_is_of_the_content(tmp_path, llama):
    one = fingerprint.fingerprint_model(llama)
    copy = tmp_path / "elsewhere"
    shutil.copytree(llama, copy)
    assert fingerprint.fingerprint_model(copy) == one
    other = fingerprint.fingerprint_model(build_llama(tmp_path / "other", seed=9))
    assert other.weights != one.weights and other.tokenizer == one.tokenizer
    assert fingerprint.fingerprint_model(build_gpt2(tmp_path / "gpt2")).chat_template != one.chat_template


def test_one_changed_bit_changes_the_fingerprint(tmp_path, llama):
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    before = fingerprint.fingerprint_model(copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert fingerprint.fingerprint_model(copy).weights != before.weights


def test_the_fingerprint_does_not_depend_on_sharding(tmp_path, llama):
    net = AutoModelForCausalLM.from_pretrained(llama)
    net.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert fingerprint.fingerprint_model(tmp_path).weights == fingerprint.fingerprint_model(llama).weights


def test_a_second_fingerprint_reads_no_weights(tmp_path, llama, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    first = fingerprint.fingerprint_model(copy)
    monkeypatch.setattr(fingerprint, "_hash_weights", lambda *_, **__: pytest.fail("read again"))
    assert fingerprint.fingerprint_model(copy) == first


def test_one_read_gives_both_digests_and_the_equal_tensors(tmp_path, llama, monkeypatch):
    monkeypatch.setattr(fingerprint, "CHUNK", 1000)  # tensors of several chunks
    base, written = llama / "model.safetensors", tmp_path / "model.safetensors"
    tensors = load_file(base)
    changed, rounded, dropped, *_, last = sorted(tensors)
    tensors[changed].view(-1)[-1] += 1
    tensors[rounded] = tensors[rounded].half()
    del tensors[dropped]
    save_file(tensors | {"zzz": torch.ones(3)}, written)
    check = file_check.check_file(base, written, hash_base=True, compare=True)
    assert check.sha256 == atomic_files.hash_file(written)
    names = {one.entry.name for one, other in check.equal}
    assert names == tensors.keys() - {changed, rounded, "zzz"} and last in names
    monkeypatch.setenv("PEFTRUN_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as unread:
        unread.setattr(fingerprint, "hash_tensors", lambda *_: pytest.fail("read again"))
        given = fingerprint.fingerprint_model(llama, {base: check.base_lines})
    assert fingerprint.are_weights_cached(llama)
    monkeypatch.setenv("PEFTRUN_CACHE", str(tmp_path / "other"))
    assert not fingerprint.are_weights_cached(llama) and fingerprint.fingerprint_model(llama) == given
    known = file_check.check_file(base, written, hash_base=False, compare=False)
    assert (known.sha256, known.equal, known.base_lines) == (check.sha256, set(), [])


def test_bfloat16_is_chosen_exactly_where_it_is_native():
    found = device.resolve_device(DeviceSpec(type="cpu", dtype="auto", num_threads=None, **ALONE))
    native = bool({"amx_bf16", "avx512_bf16", "bf16"} & environment.read_cpu_info()[1])
    assert found.dtype == (torch.bfloat16 if native else torch.float32)
    assert ("natively" in found.note) == native


def test_threads_are_set():
    before = torch.get_num_threads()
    device.resolve_device(DeviceSpec(type="cpu", dtype="float32", num_threads=1, **ALONE))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


@cases("name", ["cuda", "mps", "xpu"])
def test_a_device_that_is_not_there_is_an_error(name):
    if device._is_available(name):
        pytest.skip(f"{name} is here")
    with pytest.raises(DeviceError, match=f"device={name}: torch finds no such device"):
        device.resolve_device(DeviceSpec(type=name, dtype="auto", num_threads=None, **ALONE))


def test_one_of_several_gpus_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(device, "_is_available", lambda name: name == "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    given = {"type": "auto", "dtype": "bfloat16", "num_threads": None, **ALONE}
    assert "the first of 4; device=ddp device.num_processes=4" in device.resolve_device(DeviceSpec(**given)).note
    several = device.resolve_device(DeviceSpec(**given | {"strategy": "ddp", "num_processes": 4}))
    assert several.note == "ddp, 4 processes: device cuda, bfloat16 as asked"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "kept.json"
    atomic_files.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        atomic_files.write_json(file, {("not", "a key"): 1})
    assert atomic_files.read_json(file) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), atomic_files.create_folder(tmp_path / "new") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_files.create_folder(tmp_path / "new") as folder:
        (folder / "whole").write_text("whole")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "whole").read_text() == "whole"
    with pytest.raises(ArtifactError, match="never overwritten"), atomic_files.create_folder(tmp_path / "new"):
        pass
