"""What the files of a base say of its size, without loading it: bytes, layers, what an adapter can stand on. Light."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun import artifacts, safetensors_file
from peftrun.errors import ArtifactError
from peftrun.methods import LoraSpec
from peftrun.packages import package_dir
from peftrun.paths import cache_dir
from peftrun.schema import DeviceSpec, ModelSpec

NATIVE_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}
BITS = {"nf4": 4.5, "fp4": 4.5, "int8": 8.25, "torchao_int8": 8.25}  # of a linear weight, its scales counted in
EMBEDDING = re.compile(r"(^|\.)(embed\w*|wte|wpe|\w*embeddings?)(\.|$)")
OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|score|classifier)$")
LAYER = re.compile(r"\.(\d+)\.")
NAMES = {  # ours → what config files call it
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "inner": ("intermediate_size", "n_inner", "d_ff", "ffn_dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class Base:
    """`linears`: module → its two sizes, without embeddings and the output layer. `others`: parameters that are none of these."""

    linears: dict[str, tuple[int, int]]
    others: int
    hidden: int
    inner: int
    layers: int
    vocabulary: int

    def bytes(self, width: float, quantization: str | None) -> float:
        """Memory of the weights, each `width` bytes, the linear ones fewer if they are quantised."""
        linear = sum(first * second for first, second in self.linears.values())
        held = BITS[quantization] / 8 if quantization else width
        return linear * held + self.others * width


def read(model: ModelSpec) -> Base | None:
    """The base as its files describe it; None if they are not on this disk yet, or cannot be read."""
    folder = locate(model)
    if folder is None:
        return None
    try:
        entries = [entry for file in sorted(folder.glob("*.safetensors")) for entry in safetensors_file.entries(file)]
        sizes = _sizes(artifacts.read_json(folder / "config.json"))
    except ArtifactError:
        return None
    weights = {entry.name.removesuffix(".weight"): entry.shape for entry in entries if entry.name.endswith(".weight")}
    linears = {name: (shape[0], shape[1]) for name, shape in weights.items() if len(shape) == 2 and _linear(name)}
    total = sum(math.prod(entry.shape) for entry in entries)
    others = total - sum(first * second for first, second in linears.values())
    return Base(linears, others, **sizes) if entries else None


def _linear(name: str) -> bool:
    return not EMBEDDING.search(name) and not OUTPUT.search(name)


def _sizes(settings: dict[str, Any]) -> dict[str, int]:
    inner = settings.get("text_config") or {}
    found = {
        ours: int(next((source[name] for source in (settings, inner) for name in names if source.get(name)), 0))
        for ours, names in NAMES.items()
    }
    return found | {"inner": found["inner"] or 4 * found["hidden"]}


def locate(model: ModelSpec) -> Path | None:
    """The folder that holds a base's safetensors on this disk; None if it is still to be fetched or converted."""
    given = Path(model.name_or_path).expanduser()
    if model.package:
        given = (package_dir(model.package) or Path()) / model.name_or_path
    if given.suffix == ".gguf":
        return next(iter(sorted((cache_dir() / "models").glob(f"{given.stem}-{'[0-9a-f]' * 16}"))), None)
    if given.is_dir():
        return given
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub")
    repository = hub.expanduser() / f"models--{model.name_or_path.replace('/', '--')}"
    asked = repository / "refs" / (model.revision or "main")
    commit = asked.read_text(encoding="ascii").strip() if asked.is_file() else str(model.revision)
    found = repository / "snapshots" / commit
    return found if found.is_dir() else None


def name_of(model: ModelSpec) -> str:
    """What records call this base: never a path."""
    if model.package:
        return f"{model.package}:{model.name_or_path}"
    given = Path(model.name_or_path).expanduser()
    return given.name if given.exists() else model.name_or_path


def width(device: DeviceSpec) -> int:
    """Bytes of a weight of the base: two or four."""
    if device.dtype != "auto":
        return 4 if device.dtype == "float32" else 2
    return 2 if on_gpu(device) or NATIVE_BF16 & cpu_flags() else 4


def on_gpu(device: DeviceSpec) -> bool:
    """Whether the run goes to a GPU, as far as that can be told without torch."""
    return device.name in ("cuda", "xpu") or (device.name == "auto" and Path("/dev/nvidia0").exists())


def cpu_flags() -> set[str]:
    """Feature flags of the first processor; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    line = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return set(line.partition(":")[2].split())


def adapter_parameters(base: Base, lora: LoraSpec) -> int:
    """Parameters of a LoRA on this base: rank × (inputs + outputs) of every module that it names."""
    return sum(
        _rank(name, lora) * (first + second) for name, (first, second) in base.linears.items() if _named(name, lora)
    )


def _named(name: str, lora: LoraSpec) -> bool:
    if lora.exclude_modules is not None and _matches(name, lora.exclude_modules):
        return False
    layer = LAYER.search(f".{name}.")
    if lora.layers_to_transform is not None and (layer is None or int(layer[1]) not in lora.layers_to_transform):
        return False
    return lora.target_modules == "all-linear" or _matches(name, lora.target_modules or [])


def _matches(name: str, wanted: list[str] | str) -> bool:
    """A list names modules by their last parts, a text is an expression over whole names, of which files may lack the beginning."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None or re.fullmatch(wanted, f"model.{name}") is not None
    return any(name == one or name.endswith(f".{one}") for one in wanted)


def _rank(name: str, lora: LoraSpec) -> int:
    own = (rank for pattern, rank in (lora.rank_pattern or {}).items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(own, lora.r)
