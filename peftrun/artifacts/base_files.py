"""What the files of a base say of its size, without loading it: bytes, layers, what an adapter can stand on. Light."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.config.paths import cache_dir
from peftrun.config.schema.run import DeviceSpec, ModelSpec
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files, safetensors_header
from peftrun.system import environment
from peftrun.system.packages import find_package_dir

QUANTIZED_BITS = {
    "nf4": 4.5,
    "fp4": 4.5,
    "int8": 8.25,
    "torchao_int8": 8.25,
}  # of a linear weight, its scales counted in
EMBEDDING = re.compile(r"(^|\.)(embed\w*|wte|wpe|\w*embeddings?)(\.|$)")
OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|score|classifier)$")
CONV1D_MODEL_TYPES = (
    "gpt2",
    "openai-gpt",
    "decision_transformer",
)  # types whose files hold a layer's inputs first, its outputs second
CONFIG_KEYS = {  # ours → what config files call it
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "inner": ("intermediate_size", "n_inner", "d_ff", "ffn_dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocabulary": ("vocab_size",),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "key_heads": ("num_key_value_heads",),
    "head_size": ("head_dim", "d_kv"),
}


@dataclass(frozen=True)
class BaseModelInfo:
    """What the files say.

    Attributes:
        linears: module → its outputs and inputs, without embeddings and the output layer.
        tables: the same of embeddings and the output layer: entries and size.
        sizes: parameters of each tensor.
        keys: outputs of a layer's keys, and of its values.
        stored: bytes of the weights' files.
        quantized: the files hold few bits already, which stay as they are.
    """

    linears: dict[str, tuple[int, int]]
    tables: dict[str, tuple[int, int]]
    sizes: dict[str, int]
    kind: str
    hidden: int
    inner: int
    layers: int
    vocabulary: int
    heads: int
    keys: int
    stored: int
    quantized: bool = False

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(self.sizes.values())

    def bytes(self, width: float, quantization: str | None) -> float:
        """Memory of the weights, each `width` bytes, the linear ones fewer if they are quantised."""
        if self.quantized:
            return self.stored
        linear = sum(first * second for first, second in self.linears.values())
        held = QUANTIZED_BITS[quantization] / 8 if quantization else width
        return linear * held + (self.parameters - linear) * width

    @property
    def is_half_precision(self) -> bool:
        """Whether the files hold bfloat16 or float16, which float32 would double."""
        return not self.quantized and self.stored <= 2 * self.parameters


def read_base_info(model: ModelSpec) -> BaseModelInfo | None:
    """The base as its files describe it; None if they are not on this disk yet, or cannot be read."""
    folder = find_base_dir(model)
    return None if folder is None else read_folder_info(folder)


def read_folder_info(folder: Path) -> BaseModelInfo | None:
    """The same of the base in `folder`."""
    try:
        entries = [entry for file in _list_weight_files(folder) for entry in safetensors_header.read_header(file)]
        settings = atomic_files.read_json(folder / "config.json")
    except ArtifactError:
        return None
    kind = str(settings.get("model_type", ""))
    shapes = {one.name.removesuffix(".weight"): one.shape for one in entries if one.name.endswith(".weight")}
    turn = -1 if kind in CONV1D_MODEL_TYPES else 1
    linears = {name: _to_pair(shape[::turn]) for name, shape in shapes.items() if len(shape) == 2 and _is_linear(name)}
    tables = {name: _to_pair(shape) for name, shape in shapes.items() if len(shape) == 2 and not _is_linear(name)}
    sizes = {entry.name: math.prod(entry.shape) for entry in entries}
    stored = sum(entry.end - entry.begin for entry in entries)
    quantized = bool(settings.get("quantization_config"))
    return (
        BaseModelInfo(linears, tables, sizes, kind, **_read_sizes(settings), stored=stored, quantized=quantized)
        if entries
        else None
    )


def _list_weight_files(folder: Path) -> list[Path]:
    """Those that transformers reads: some folders hold the same weights once more in another layout.

    Raises: ArtifactError: the index cannot be read.
    """
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    if index.is_file():
        return [folder / name for name in sorted(set(atomic_files.read_json(index).get("weight_map", {}).values()))]
    return sorted(folder.glob("*.safetensors"))


def _to_pair(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], shape[1]


def _is_linear(name: str) -> bool:
    return not EMBEDDING.search(name) and not OUTPUT.search(name)


def _read_sizes(settings: dict[str, Any]) -> dict[str, int]:
    inner = settings.get("text_config") or {}
    found = {
        ours: int(next((source[name] for source in (settings, inner) for name in names if source.get(name)), 0))
        for ours, names in CONFIG_KEYS.items()
    }
    size = found.pop("head_size") or found["hidden"] // max(1, found["heads"])
    keys = (found.pop("key_heads") or found["heads"]) * size
    return found | {"inner": found["inner"] or 4 * found["hidden"], "keys": keys}


def find_base_dir(model: ModelSpec) -> Path | None:
    """The folder that holds a base's safetensors on this disk; None if it is still to be fetched or converted."""
    place = resolve_model_path(model)
    if place.suffix == ".gguf":
        return next(iter(sorted((cache_dir() / "models").glob(f"{place.stem}-{'[0-9a-f]' * 16}"))), None)
    if place.is_dir():
        return place
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub")
    repository = hub.expanduser() / f"models--{model.name_or_path.replace('/', '--')}"
    asked = repository / "refs" / (model.revision or "main")
    commit = asked.read_text(encoding="ascii").strip() if asked.is_file() else str(model.revision)
    found = repository / "snapshots" / commit
    return found if found.is_dir() else None


def resolve_model_path(model: ModelSpec) -> Path:
    """The folder or file that is named, in its package if it lies in one; of a base on the Hub nothing that is there."""
    if model.package:
        return (find_package_dir(model.package) or Path()) / model.name_or_path
    return Path(model.name_or_path).expanduser()


def format_base_name(model: ModelSpec) -> str:
    """What records call this base: never a path."""
    if model.package:
        return f"{model.package}:{model.name_or_path}"
    given = Path(model.name_or_path).expanduser()
    return given.name if given.exists() else model.name_or_path


def weight_bytes(device: DeviceSpec) -> int:
    """Bytes of a weight of the base: two or four."""
    if device.dtype != "auto":
        return 4 if device.dtype == "float32" else 2
    return 2 if uses_gpu(device) or environment.find_native_bf16() else 4


def uses_gpu(device: DeviceSpec) -> bool:
    """Whether the run goes to a GPU, as far as that can be told without torch."""
    return device.name in ("cuda", "xpu") or (device.name == "auto" and Path("/dev/nvidia0").exists())
