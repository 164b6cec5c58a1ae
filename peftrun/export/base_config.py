"""The base model of an export, from its config alone: no weights are read. Light."""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_origin, base_location, portable_names, run_overrides
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.run_layout import CONFIG
from peftrun.config import values as config
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.io import atomic_files

MODEL_CLASSES = {  # architecture in GGUF → class in transformers
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel",
}  # fmt: skip
GGUF_FIELDS = {  # field of a GGUF file → key of config.json
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "embedding_length": "hidden_size",
    "attention.key_length": "head_dim",
}


@dataclass(frozen=True)
class ExportBase:
    """The base model of what is exported.

    Attributes:
        model: values of config group `model`; None if the base model is unknown.
        id: on the Hub; None if unknown.
        revision: of that id.
        place: the file or folder on this machine; None if it is missing.
        typed: it was named on this command line, and no id beside it.
    """

    model: Mapping[str, Any] | None
    id: str | None
    revision: str | None
    place: Path | None
    typed: bool

    @property
    def here(self) -> str | None:
        """`place`, quoted for a shell."""
        return shlex.quote(str(self.place)) if self.place else None

    @property
    def served(self) -> str | None:
        """How to name it to a server on this machine: the folder that was typed, the id, or the recorded folder."""
        return (self.here if self.typed else None) or self.id or self.here


def find(source: ExportSource, typed: ModelSpec | None, base_model: str | None) -> ExportBase:
    """The base model of the run that made the source; of a source made elsewhere the typed one, else the recorded one.

    Args: typed: the config's, None if none was typed (see `is_typed`). base_model: `action.base_model`, an id.
    """
    typed = None if source.run else typed
    model = dataclasses.asdict(typed) if typed else _read_recorded_model(source)
    name_id = portable_names.hub_id(str(model["name_or_path"])) if model and not model["package"] else None
    known_id = name_id or portable_names.hub_id(portable_names.get_recorded_base_name(source))
    revision = model["revision"] if name_id and model else source.base().get("revision")
    if not known_id or base_model not in (None, known_id):  # the revision belongs to another repository
        revision = None
    path = None
    if model:
        path = base_location.resolve_model_path(ModelSpec(**model))
        path = path.absolute() if path.exists() else None
    return ExportBase(model, base_model or known_id, revision, path, typed is not None and base_model is None)


def is_typed(out_dir: Path) -> bool:
    """Whether a base model was chosen for this run. A run from Python without overrides has a complete config, so it counts as chosen."""
    keys = {text.lstrip("+~").partition("=")[0].partition(".")[0] for text in run_overrides.read_overrides(out_dir)}
    return bool(keys & {"model", "experiment"}) or not (out_dir / run_overrides.HYDRA_DIR).is_dir()


def _read_recorded_model(source: ExportSource) -> Mapping[str, Any] | None:
    """Config group `model` of the source's run; without a run, one with the recorded base model name; None if there is none."""
    if source.run:
        model: Mapping[str, Any] = config.read_run(source.run / CONFIG, report_changes=False)["model"]
        return model
    name = source.base().get("name") or (source.config.get("base_model_name_or_path") if source.is_adapter else None)
    if not name:
        return None
    revision = source.base().get("revision") or source.config.get("revision")
    return dataclasses.asdict(adapter_origin.make_model_spec(str(name), revision))


def read_base_config(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json of the base model, or the header of its GGUF file with the same keys; None if it is not on this machine.

    For a language model inside a larger one (vision-language), the config of the language model with `wrapped: True`.

    Raises: ModelError: the file cannot be read.
    """
    spec = ModelSpec(**model)
    path = base_location.resolve_model_path(spec)
    if path.suffix == ".gguf":
        return _read_gguf_config(path) if path.is_file() else None
    file = base_location.find_base_config(spec)
    if file is None:
        return None
    values = atomic_files.read_json(file)
    text_config = values.get("text_config")
    if not isinstance(text_config, dict):
        return values
    return {**text_config, "architectures": values.get("architectures"), "wrapped": True}


def get_architecture(values: Mapping[str, Any] | None) -> str | None:
    """The model class in transformers; None if unknown."""
    names = (values or {}).get("architectures") or [None]
    return str(names[0]) if names[0] else None


def _read_gguf_config(file: Path) -> dict[str, Any]:
    try:
        from gguf import GGUFReader

        reader = GGUFReader(file)
        name = str(reader.fields["general.architecture"].contents())
        values = {key: reader.fields.get(f"{name}.{field}") for field, key in GGUF_FIELDS.items()}
    except (ImportError, OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{file}: cannot be read as GGUF ({error}); restore it, or install package gguf") from error
    sizes = {key: int(field.contents()) for key, field in values.items() if field is not None}
    return {**sizes, "architectures": [MODEL_CLASSES.get(name, name)]}
