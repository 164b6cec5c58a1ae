"""Runs of peftrun in a worker: what is typed for them, and what is read from their folders."""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import DEVICE, GIB, WORK
from benchmarks.gpu.inputs import get_base, write_pairs


def choose_base(folder: Path, dtype: str = "float32", device: str = DEVICE) -> list[str]:
    """Overrides: this base model on this device."""
    return ["model=pretrained", f"model.name_or_path={folder}", f"device={device}", f"device.dtype={dtype}"]


def choose_inputs(dtype: str = "float32", device: str = DEVICE, folder: Path | None = None) -> list[str]:
    """Overrides of any action: the nano base model, or `folder`, and the small rows."""
    rows = ["task=instruction", f"task.data.path={write_pairs()}", "task.data.num_test_rows=8", "task.max_length=64"]
    return [*choose_base(folder or get_base("nano"), dtype, device), *rows]


def choose_training(
    dtype: str = "float32", device: str = DEVICE, steps: int = 8, folder: Path | None = None
) -> list[str]:
    """Overrides: a training of seconds on the nano base model."""
    return [
        *choose_inputs(dtype, device, folder), "trainer.learning_rate=5e-3", f"trainer.max_steps={steps}", "trainer.warmup_steps=0",
        "trainer.logging_steps=1", "trainer.save_strategy=no", "action.num_samples=1",
    ]  # fmt: skip


def new_folder(name: str) -> Path:
    """A folder that does not exist yet."""
    (WORK / "runs").mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=WORK / "runs")) / "run"


def run(*overrides: str, name: str = "run") -> Any:
    """The result of `peftrun OVERRIDES`, run here; `facts["wall"]` is its seconds."""
    import peftrun

    begin = time.perf_counter()
    result = peftrun.run(*overrides, out_dir=new_folder(name))
    synchronize()
    result.facts["wall"] = time.perf_counter() - begin
    return result


def run_once(name: str, *overrides: str) -> Path:
    """Folder of a run that several cases need; run when it is first asked for."""
    mark = WORK / f"once-{name}"
    if not mark.exists():
        mark.write_text(str(run(*overrides, name=name).out_dir))
    return Path(mark.read_text())


def run_reference() -> Path:
    """Folder of the training that others are compared with."""
    return run_once("reference", *choose_training())


def read_record(folder: Path) -> dict[str, Any]:
    """A run's record."""
    return json.loads((folder / "record.json").read_text())


def read_losses(folder: Path) -> list[float]:
    """The training losses; rows of validation have none."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def read_nondeterministic(folder: Path) -> Any:
    """Names of operations that are not deterministic on this device; None if there are none."""
    return read_record(folder).get("numerics", {}).get("not_deterministic")


def hash_adapter(folder: Path) -> str:
    """Digest of a run's adapter."""
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def compare_adapters(adapter: Path, other: Path) -> float:
    """Largest relative distance of a tensor, ‖a − b‖ / ‖b‖, of two adapter folders."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, other))
    if a.keys() != b.keys():
        raise ValueError(f"the adapters have different tensors: {sorted(a.keys() ^ b.keys())[:4]}")
    return max(float((a[key].float() - b[key].float()).norm() / b[key].float().norm().clamp(min=1e-12)) for key in a)


def compare_runs(folder: Path, other: Path) -> float:
    """The same of two runs."""
    return compare_adapters(folder / "adapter", other / "adapter")


def compare_losses(losses: Sequence[float], others: Sequence[float]) -> float:
    """Largest distance of a step's loss; NaN if there is no step."""
    return max((abs(a - b) for a, b in zip(losses, others, strict=False)), default=math.nan)


def check_losses(folder: Path) -> dict[str, Any]:
    """`ok`: every loss is finite and the last is below the first."""
    losses = read_losses(folder)
    falling = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    return {"ok": falling, "loss_first": losses[0], "loss_last": losses[-1]}


def reload(folder: Path, dtype: str = "float32", *more: str) -> dict[str, Any]:
    """The proof of a reload. Raises: ProofError."""
    overrides = [*choose_inputs(dtype), *more, "action=reload", "action.evaluate=false", f"adapter={folder}"]
    adapters = run(*overrides, name="reload").facts.get("adapters") or [{}]
    return {"reload_differs_from_saved": adapters[0].get("saved_difference", "?")}


def synchronize() -> None:
    """Waits for the GPU."""
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


def get_peak_gib() -> float | None:
    """Largest memory of tensors on the GPU since the case began; None on a CPU."""
    import torch

    return round(torch.cuda.max_memory_allocated() / GIB, 2) if DEVICE == "cuda" else None


def get_reserved_gib() -> float | None:
    """Largest memory that torch held on the GPU; None on a CPU."""
    import torch

    return round(torch.cuda.max_memory_reserved() / GIB, 2) if DEVICE == "cuda" else None
