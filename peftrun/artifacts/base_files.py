"""A base model's size, layers and adaptable modules, read from its files without loading it. Light."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts import base_location
from peftrun.config.schema.quantization_formats import FORMATS
from peftrun.config.schema.run import DeviceSpec, ModelSpec
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files, safetensors_header
from peftrun.system import environment

EMBEDDING = re.compile(r"(^|\.)(embed\w*|wte|wpe|\w*embeddings?)(\.|$)")
OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|score|classifier)$")
CONV1D_MODEL_TYPES = ("gpt2", "openai-gpt", "decision_transformer")  # their linear weights are (in, out), not (out, in)
CONFIG_KEYS = {  # size → its names in config files
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
    """A base model as its files describe it.

    Attributes:
        linears: module → (out, in) of its weight, without embeddings and the output layer.
        tables: module → (entries, width) of embeddings and the output layer.
        sizes: tensor → number of parameters.
        kind: `model_type` of its config.
        keys: outputs of a layer's key projection, which are those of its value projection.
        stored: bytes of its tensors on disk.
        quantized: whether the files are quantized.
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
        """Number of parameters."""
        return sum(self.sizes.values())

    def bytes(self, width: float, quantization: str | None) -> float:
        """Bytes of the weights in memory, at `width` bytes each; linear layers take fewer if they are quantized."""
        if self.quantized:
            return self.stored
        linear = sum(outputs * inputs for outputs, inputs in self.linears.values())
        linear_width = FORMATS[quantization].bits / 8 if quantization else width
        return linear * linear_width + (self.parameters - linear) * width

    @property
    def is_half_precision(self) -> bool:
        """Whether the files hold bfloat16 or float16, so that float32 doubles their size."""
        return not self.quantized and self.stored <= 2 * self.parameters


def read_base_info(model: ModelSpec) -> BaseModelInfo | None:
    """The base model as its files describe it; None if they are not on this disk yet, or cannot be read."""
    folder = base_location.find_base_dir(model)
    return None if folder is None else read_folder_info(folder)


def read_folder_info(folder: Path) -> BaseModelInfo | None:
    """The same for the base model in `folder`."""
    try:
        entries = [
            entry
            for file in safetensors_header.list_weight_files(folder)
            for entry in safetensors_header.read_header(file)
        ]
        settings = atomic_files.read_json(folder / "config.json")
    except ArtifactError:
        return None
    if not entries:
        return None
    kind = str(settings.get("model_type", ""))
    linears, tables = {}, {}
    for entry in entries:
        name = entry.name.removesuffix(".weight")
        if name == entry.name or len(entry.shape) != 2:
            continue
        first, second = entry.shape
        if EMBEDDING.search(name) or OUTPUT.search(name):
            tables[name] = (first, second)
        else:  # always (out, in)
            linears[name] = (second, first) if kind in CONV1D_MODEL_TYPES else (first, second)
    sizes = {entry.name: math.prod(entry.shape) for entry in entries}
    stored = sum(entry.end - entry.begin for entry in entries)
    quantized = bool(settings.get("quantization_config"))
    return BaseModelInfo(linears, tables, sizes, kind, **_read_sizes(settings), stored=stored, quantized=quantized)


def _read_sizes(settings: dict[str, Any]) -> dict[str, int]:
    """Those of CONFIG_KEYS as fields of BaseModelInfo; 0 where a config names none."""
    text_config = settings.get("text_config") or {}  # of a model of several modalities
    sizes = {
        field: int(next((source[name] for source in (settings, text_config) for name in names if source.get(name)), 0))
        for field, names in CONFIG_KEYS.items()
    }
    head_size = sizes.pop("head_size") or sizes["hidden"] // max(1, sizes["heads"])
    keys = (sizes.pop("key_heads") or sizes["heads"]) * head_size  # no key_heads: no grouped-query attention
    return sizes | {"inner": sizes["inner"] or 4 * sizes["hidden"], "keys": keys}  # 4: GPT-2's default


def format_base_name(model: ModelSpec) -> str:
    """The base model's name in records: `package:file`, a folder's last part or a Hub id, never a path."""
    if model.package:
        return f"{model.package}:{model.name_or_path}"
    path = Path(model.name_or_path).expanduser()
    return path.name if path.exists() else model.name_or_path


def weight_bytes(device: DeviceSpec) -> int:
    """Bytes per weight of the base model: 2 or 4."""
    if device.dtype != "auto":
        return 4 if device.dtype == "float32" else 2
    return 2 if uses_gpu(device) or environment.find_native_bf16() else 4


def uses_gpu(device: DeviceSpec) -> bool:
    """Whether the run will use a GPU, as far as can be detected without torch."""
    return device.type in ("cuda", "xpu") or (device.type == "auto" and environment.sees_cuda_gpu())
