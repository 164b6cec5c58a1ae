"""What the base is, from its config alone: nothing of its weights is read. Light."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftrun import artifacts, config
from peftrun.errors import ModelError
from peftrun.export.source import Source
from peftrun.packages import package_dir

CLASSES = {  # architecture as GGUF calls it → class in transformers
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel",
}  # fmt: skip
FIELDS = {  # field of a GGUF file → key of config.json
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "embedding_length": "hidden_size",
    "attention.key_length": "head_dim",
}


def model_of(source: Source) -> Mapping[str, Any] | None:
    """The values of group `model` that the adapter's run was given; None for an adapter without a run."""
    return config.read_run(source.run / artifacts.CONFIG, aloud=False)["model"] if source.run else None


def settings(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json of the base, or what the header of its GGUF file says in the same keys; None where it is not on this machine.

    Of a language model inside a larger one it is the language model's part, and `wrapped` says so.

    Raises: ModelError: it is there and cannot be read.
    """
    given = Path(str(model["name_or_path"])).expanduser()
    if model.get("package"):
        given = (package_dir(str(model["package"])) or Path()) / given
    if given.suffix == ".gguf":
        return _of_gguf(given) if given.is_file() else None
    file = given / "config.json" if given.is_dir() else _cached(str(model["name_or_path"]), model.get("revision"))
    if file is None or not file.is_file():
        return None
    found = artifacts.read_json(file)
    text = found.get("text_config")
    if not isinstance(text, dict):
        return found
    return {**text, "architectures": found.get("architectures"), "wrapped": True}


def architecture(found: Mapping[str, Any] | None) -> str | None:
    """The class in transformers; None where it is not known."""
    names = (found or {}).get("architectures") or [None]
    return str(names[0]) if names[0] else None


def _cached(name: str, revision: Any) -> Path | None:
    """config.json of a base from the Hub, as it lies in the cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _of_gguf(file: Path) -> dict[str, Any]:
    try:
        from gguf import GGUFReader

        reader = GGUFReader(file)
        name = str(reader.fields["general.architecture"].contents())
        values = {key: reader.fields.get(f"{name}.{field}") for field, key in FIELDS.items()}
    except (ImportError, OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{file}: cannot be read as GGUF ({error}); restore it, or install package gguf") from error
    known = {key: int(field.contents()) for key, field in values.items() if field is not None}
    return {**known, "architectures": [CLASSES.get(name, name)]}
