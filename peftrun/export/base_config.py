"""What the base is, from its config alone: nothing of its weights is read. Light."""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts import portable_names, run_overrides
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.run_layout import CONFIG
from peftrun.config import values as config
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.io import atomic_files
from peftrun.system.packages import find_package_dir

MODEL_CLASSES = {  # architecture as GGUF calls it → class in transformers
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
    """The base of what is exported.

    Attributes:
        model: values of group `model`; None where nothing says what the base is.
        id: on the Hub; None where it is not known.
        revision: of that id.
        place: the file or folder on this machine; None where it is not here.
        typed: it was named on this command line.
    """

    model: Mapping[str, Any] | None
    id: str | None
    revision: str | None
    place: Path | None
    typed: bool

    @property
    def here(self) -> str | None:
        """`place`, as a shell reads it."""
        return shlex.quote(str(self.place)) if self.place else None

    @property
    def served(self) -> str | None:
        """What a server on this machine is told: the folder that was typed, the id, or the folder that was noted."""
        return (self.here if self.typed else None) or self.id or self.here


def find(source: ExportSource, typed: ModelSpec | None, given: str | None) -> ExportBase:
    """The base: of the run that made it; of what was made elsewhere the one that is typed, else the one that it notes.

    Args: typed: None where no base was, see `is_typed`. given: its id as `action.base_model`.
    """
    typed = None if source.run else typed
    model = dataclasses.asdict(typed) if typed else _noted(source)
    own = portable_names.hub_id(str(model["name_or_path"])) if model and not model["package"] else None
    known, revision = (
        own or portable_names.hub_id(portable_names.get_recorded_base_name(source)),
        source.base().get("revision"),
    )
    if own and model:
        revision = model["revision"]
    place = _place(model) if model else None
    return ExportBase(
        model, given or known, revision if known and given in (None, known) else None, place, typed is not None
    )


def is_typed(out_dir: Path) -> bool:
    """Whether a base was chosen for this run; one from Python without overrides is given a complete config."""
    keys = {text.lstrip("+~").partition("=")[0].partition(".")[0] for text in run_overrides.read_overrides(out_dir)}
    return bool(keys & {"model", "experiment"}) or not (out_dir / run_overrides.HYDRA_DIR).is_dir()


def _noted(source: ExportSource) -> Mapping[str, Any] | None:
    """Values of group `model` of the adapter's run; of one without a run by the name that is noted beside it; None where there is none."""
    if source.run:
        model: Mapping[str, Any] = config.read_run(source.run / CONFIG, aloud=False)["model"]
        return model
    name = source.base().get("name") or (source.config.get("base_model_name_or_path") if source.is_adapter else None)
    if not name:
        return None
    package, sign, inside = str(name).partition(":")
    packed = bool(sign) and find_package_dir(package) is not None
    revision = source.base().get("revision") or source.config.get("revision")
    where, at = (inside, package) if packed else (str(name), None)
    return dataclasses.asdict(ModelSpec(where, at, str(revision) if revision else None, None, None, False))


def _place(model: Mapping[str, Any]) -> Path | None:
    path = Path(str(model["name_or_path"])).expanduser()
    if model["package"]:
        path = (find_package_dir(str(model["package"])) or Path("/nowhere")) / path
    return path.absolute() if path.exists() else None


def read_base_config(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json of the base, or what the header of its GGUF file says in the same keys; None where it is not on this machine.

    Of a language model inside a larger one it is the language model's part, and `wrapped` says so.

    Raises: ModelError: it is there and cannot be read.
    """
    given = Path(str(model["name_or_path"])).expanduser()
    if model.get("package"):
        given = (find_package_dir(str(model["package"])) or Path()) / given
    if given.suffix == ".gguf":
        return _read_gguf_config(given) if given.is_file() else None
    file = (
        given / "config.json"
        if given.is_dir()
        else _find_cached_config(str(model["name_or_path"]), model.get("revision"))
    )
    if file is None or not file.is_file():
        return None
    found = atomic_files.read_json(file)
    text = found.get("text_config")
    if not isinstance(text, dict):
        return found
    return {**text, "architectures": found.get("architectures"), "wrapped": True}


def get_architecture(found: Mapping[str, Any] | None) -> str | None:
    """The class in transformers; None where it is not known."""
    names = (found or {}).get("architectures") or [None]
    return str(names[0]) if names[0] else None


def _find_cached_config(name: str, revision: Any) -> Path | None:
    """config.json of a base from the Hub, as it lies in the cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _read_gguf_config(file: Path) -> dict[str, Any]:
    try:
        from gguf import GGUFReader

        reader = GGUFReader(file)
        name = str(reader.fields["general.architecture"].contents())
        values = {key: reader.fields.get(f"{name}.{field}") for field, key in GGUF_FIELDS.items()}
    except (ImportError, OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{file}: cannot be read as GGUF ({error}); restore it, or install package gguf") from error
    known = {key: int(field.contents()) for key, field in values.items() if field is not None}
    return {**known, "architectures": [MODEL_CLASSES.get(name, name)]}
