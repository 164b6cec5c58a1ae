"""A base or a training that free memory cannot hold is refused in one line before it is loaded, and `auto` is a dtype that fits."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import psutil
import pytest
import torch
from cases import cases
from conftest import TINY_STEPS
from faults import check_failed
from test_startup import run as run_probed

from peftrun.artifacts import base_files
from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.models import base as base_models
from peftrun.models import memory_check, placement
from peftrun.models.device import Device
from peftrun.planning import memory, memory_fit
from peftrun.system import environment, free_memory

MACHINE = psutil.virtual_memory().total
LINEAR, EMBEDDING = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
GO_ON = "device.memory_check=false to go on all the same"
LOADING = {  # action → what it needs beside a base and a task
    "train": [], "save": [], "evaluate": [], "generate": ["action.prompt=hi"], "serve": ["action.port=0"],
    "extract": ["action.finetuned_model=LLAMA", "lora.target_modules=all-linear"], "reload": ["adapter=TRAINED"],
    "combine": ["adapter={a: TRAINED, b: TRAINED}"],
}  # fmt: skip


@pytest.fixture(scope="session")
def sized(tmp_path_factory, llama):
    """Makes a base of so many parameters in one module: its files have headers, and a hole where the weights would be."""

    def make(parameters, module=LINEAR, dtype="BF16"):
        folder = tmp_path_factory.mktemp("bases") / f"base-{module.rpartition('.')[2]}-{dtype.lower()}"
        folder.mkdir()
        for file in llama.iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        rows, size = int(parameters) // 4096, {"BF16": 2, "F32": 4}[dtype]
        end = rows * 4096 * size
        header = json.dumps({f"{module}.weight": {"dtype": dtype, "shape": [rows, 4096], "data_offsets": [0, end]}})
        with open(folder / "model.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header.encode())
            file.truncate(8 + len(header) + end)
        return folder

    return make


@pytest.fixture(scope="session")
def huge(sized):
    return sized(MACHINE, EMBEDDING)


@pytest.fixture(scope="session")
def doubled(sized):
    """Fits into memory as it is stored, and not in float32."""
    return sized(free_memory.get_available_memory().bytes // 3)


def typed(*overrides):
    return build_spec(compose.compose_run(list(overrides)).cfg)


@cases("action", LOADING)
def test_every_action_refuses_a_base_that_does_not_fit(cli, huge, llama, on_tiny, trained, action, tmp_path):
    more = [one.replace("TRAINED", str(trained)).replace("LLAMA", str(llama)) for one in LOADING[action]]
    args = [*on_tiny(huge), f"action={action}", *more]
    outcome = check_failed(cli, tmp_path, args, ["takes", " about ", " GB free; type ", GO_ON])
    assert outcome.run_dir is None


@cases("action", LOADING, every=8)
def test_a_shortage_on_a_cpu_is_found_before_torch_is_imported(huge, llama, on_tiny, trained, action, tmp_path):
    more = [one.replace("TRAINED", str(trained)).replace("LLAMA", str(llama)) for one in LOADING[action]]
    done = run_probed(tmp_path, *on_tiny(huge), f"action={action}", *more)
    assert done.returncode == 1 and "HEAVY []" in done.stderr, done.stderr
    assert " about " in done.stderr and GO_ON in done.stderr and not (tmp_path / "outputs").exists()


def test_a_gpu_is_seen_by_the_files_of_its_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "DEVICE_DIR", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not environment.sees_cuda_gpu()
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "dri").mkdir()
    assert not environment.sees_cuda_gpu() and environment.may_have_gpu()
    (tmp_path / "nvidia3").touch()  # a container may be given any one of several
    assert environment.sees_cuda_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not environment.sees_cuda_gpu()


@cases("launcher", ["shared_base", "basic"])
def test_every_cell_of_a_sweep_is_refused(cli, huge, on_tiny, launcher):
    outcome = cli("-m", *on_tiny(huge), *TINY_STEPS, "seed=1,2", f"hydra/launcher={launcher}")
    assert outcome.code == 1 and "Traceback" not in outcome.err and GO_ON in outcome.err


@pytest.mark.slow
def test_a_real_limit_ends_a_process_in_one_line(sized, on_tiny, tmp_path):
    limit = (psutil.Process().memory_info().vms + 2 * 10**9) // 1024
    words = [sys.executable, "-m", "peftrun", *on_tiny(sized(10**9)), "action=evaluate"]
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v {limit}; exec {shlex.join(words)}"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("peftrun: base base-q_proj-bf16: in float32 it takes about 6.")
    assert " GB with its files, of " in last and " GB free under ulimit -v; type " in last
    assert "device=offload" not in last  # what it maps would count


def refused(spec, folder, **limits):
    base = base_files.read_folder_info(folder)
    return memory_fit.suggest_overrides(base, spec, memory_fit.measure_headroom(**limits))


def test_only_what_helps_is_advised(doubled, huge, llama, on_tiny, trained):
    small = on_tiny(doubled)
    offload = "device=offload '++device.max_memory={cpu: "
    told = {
        name: refused(typed(*small, f"action={name}", *given), doubled)
        for name, given in {
            "evaluate": [], "serve": [], "extract": [f"action.finetuned_model={llama}"], "merge": [f"adapter={trained}"],
        }.items()
    }  # fmt: skip
    held = ["device.dtype=bfloat16", *(["model.quantization=nf4"] if find_spec("bitsandbytes") else [])]
    assert told["evaluate"][:-1] == held and told["evaluate"][-1].startswith(offload)
    assert told["serve"] == held
    assert told["extract"][:-1] == ["device.dtype=bfloat16"]  # it reads the base in full precision
    assert told["extract"][-1].startswith(offload)
    assert [one.startswith(offload) for one in told["merge"]] == [True]  # it computes in float32
    assert refused(typed(*on_tiny(huge), "action=save"), huge) == []


def test_what_is_advised_is_taken(doubled, on_tiny):
    asked = on_tiny(doubled)
    for text in refused(typed(*asked, "action=evaluate"), doubled):
        spec, place = typed(*asked, "action=evaluate", *shlex.split(text)), Device("cpu", torch.float32, "")
        place = replace(place, dtype=getattr(torch, spec.device.dtype), max_memory=spec.device.max_memory)
        memory_check.check_load_memory(doubled, spec.model, place, place.dtype)


def test_a_smaller_batch_is_advised_for_training(llama, on_tiny):
    spec = typed(*on_tiny(llama), "trainer.per_device_train_batch_size=2097152")
    first = refused(spec, llama)[0]
    assert first.startswith("trainer.per_device_train_batch_size=")
    with pytest.raises(memory_check.MemoryShortageError, match="this training takes, as action=plan estimates, about"):
        placement.resolve_run_device(spec)
    placement.resolve_run_device(typed(*on_tiny(llama), first))


def test_processes_share_what_is_free(llama, on_tiny):
    spec = typed(
        *on_tiny(llama), "device=ddp", "device.type=cpu", "device.num_processes=1000", "task.max_length=100000"
    )
    with pytest.raises(
        memory_check.MemoryShortageError, match="each of 1000 processes of this training takes, as action=plan"
    ):
        placement.resolve_run_device(spec)


@pytest.fixture
def old_processor(monkeypatch):
    """One that computes bfloat16 by way of float32."""
    monkeypatch.setattr(environment, "NATIVE_BF16", ())


@pytest.mark.usefixtures("old_processor")
@cases(
    "dtype,given",
    [
        ("bfloat16", ["action=evaluate"]), ("bfloat16", ["action=train", "task.max_length=16"]),
        ("bfloat16", ["action=evaluate", "device.memory_check=false"]), ("float32", ["action=evaluate", "device.dtype=float32"]),
    ],
)  # fmt: skip
def test_auto_does_not_double_what_would_not_fit(doubled, on_tiny, dtype, given):
    place = placement.resolve_run_device(typed(*on_tiny(doubled), "device.dtype=auto", *given))
    assert place.dtype_name == dtype
    if dtype == "bfloat16":
        assert place.note.startswith("device cpu, bfloat16: float32 would take about ") and " GB free" in place.note


@pytest.mark.usefixtures("old_processor")
def test_auto_is_float32_where_that_fits_or_bfloat16_would_lose_something(llama, sized, doubled, huge, on_tiny):
    whole = sized(free_memory.get_available_memory().bytes // 3, dtype="F32")
    for folder in (llama, whole):  # fits; is not doubled
        assert (
            placement.resolve_run_device(typed(*on_tiny(folder), "device.dtype=auto", "action=evaluate")).dtype
            == torch.float32
        )
    with pytest.raises(memory_check.MemoryShortageError):  # its small updates would be rounded away
        placement.resolve_run_device(typed(*on_tiny(doubled), "device.dtype=auto", "lora=none"))


@pytest.mark.usefixtures("old_processor")
def test_a_plan_knows_the_dtype(cli, doubled, on_tiny):
    outcome = cli(*on_tiny(doubled), "device.dtype=auto", "task.max_length=16", "action=plan", "action.measure_steps=0")
    assert "device.dtype=auto is bfloat16 here: float32 would take about " in outcome.out and "fits: " in outcome.out


def test_it_goes_on_if_asked_and_the_record_says_so(cli, llama, on_tiny, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", 100 * MACHINE)  # an estimate that is far off
    assert cli(*on_tiny(llama), "action=evaluate").code == 1
    outcome = cli(*on_tiny(llama), "action=evaluate", "device.memory_check=false")
    assert outcome.code == 0 and "goes on, as device.memory_check=false asks" in outcome.err
    assert outcome.record()["device"].endswith("; memory is not checked, as device.memory_check=false asks")


def test_auto_lets_wait_on_disk_what_fits_in_no_dtype(cli, huge, llama, on_tiny, trained):
    asked = [*on_tiny(huge), "device.dtype=auto"]
    for action in (["evaluate"], ["generate", "action.prompt=hi"], ["reload", f"adapter={trained}"]):
        place = placement.resolve_run_device(
            typed(*asked, *(f"action={one}" if one.isalpha() else one for one in action))
        )
        assert place.dtype == torch.bfloat16 and "; base offloaded beyond cpu " in place.note
        memory_check.check_load_memory(huge, typed(*asked).model, place, place.dtype)
    whole = replace(typed(*asked, "action=evaluate"), model=typed(*on_tiny(llama)).model)
    assert placement.resolve_run_device(whole).max_memory is None
    for more in (["action=evaluate", "device.dtype=bfloat16"], ["action=train"], ["action=save"]):
        spec = typed(*asked, *more)
        with pytest.raises(memory_check.MemoryShortageError):
            place = placement.resolve_run_device(spec)
            memory_check.check_load_memory(huge, spec.model, place, place.dtype)


def test_what_waits_on_disk_is_not_counted(huge, on_tiny):
    spec = typed(
        *on_tiny(huge), "action=evaluate", "device=offload", "device.type=cpu", "++device.max_memory={cpu: 60KB}"
    )
    memory_check.check_load_memory(huge, spec.model, placement.resolve_run_device(spec), torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_a_gpu_tells_what_it_can_give():
    before = memory_check.get_gpu_headroom("cuda").limits[0].bytes
    held = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    assert before - memory_check.get_gpu_headroom("cuda").limits[0].bytes >= held.nbytes
    del held  # torch keeps it for the next tensor
    assert before - memory_check.get_gpu_headroom("cuda").limits[0].bytes < 1 << 28
    assert 0 < before <= torch.cuda.mem_get_info()[1]


def test_memory_that_runs_out_all_the_same_is_one_line(cli, llama, on_tiny, trained, monkeypatch):
    """What torch, a GPU's library or the system says is not a traceback to the user."""
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
    ):

        def full(*_, why=error, **__):
            raise why

        monkeypatch.setattr(base_models, "_load_model", full)
        outcome = cli(*on_tiny(llama), "action=evaluate", f"adapter={trained}", "device.memory_check=false")
        assert outcome.code == 1 and "Traceback" not in outcome.err, outcome.err
        assert "memory is full" in outcome.err and "type " in outcome.err
