"""Tokenizer and chat template files in an adapter's folder, and whether they are the base model's. Light."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftrun.artifacts import base_location
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.run_layout import MORE_TEMPLATES, TOKENIZER_FILES
from peftrun.config.schema.run import ModelSpec

TEMPLATE = "chat_template.jinja"
LENGTHS = ("truncation", "padding")  # settings of a tokenizer that do not change the tokens of a text


def list_files(folder: Path) -> list[Path]:
    """The tokenizer and template files in a folder, relative to it."""
    named = [Path(name) for name in TOKENIZER_FILES if (folder / name).is_file()]
    return named + [path.relative_to(folder) for path in sorted(folder.glob(MORE_TEMPLATES))]


def find_differing_parts(folder: Path, model: Mapping[str, Any] | None) -> list[str] | None:
    """Which differ from the base model's: "tokenizer", "chat template"; None if that is unknown on this machine."""
    base = base_location.find_base_dir(ModelSpec(**model)) if model else None
    if base is None:
        return None
    from peftrun.artifacts import fingerprint

    readers = {"tokenizer": _read_tokenizer, "chat template": fingerprint.of_template}
    contents = {part: (read(folder), read(base)) for part, read in readers.items()}
    ours, bases = contents["tokenizer"]
    if ours is not None and bases is None:  # the base model's has another file format
        return None
    return [part for part, (ours, bases) in contents.items() if ours is not None and ours != bases]


def describe_difference(source: ExportSource, differs: list[str] | None, target: str) -> str | None:
    """Warning about tokenizer or template files; None if there are none, or they are the base model's."""
    names = ", ".join(map(str, list_files(source.folder)))
    if not names or differs == []:
        return None
    if differs:
        what, unknown = f"another {' and another '.join(differs)} than its base model's", ""
    else:
        what = "a tokenizer or chat template of its own"
        unknown = "; whether they are the base model's is unknown on this machine"
    if target == "gguf":
        consequence = "a GGUF adapter has none, so llama.cpp uses the base model's: to use these, put them into a copy of the base model and convert that"
    elif target == "vllm":
        consequence = "they are exported, but the command leaves vLLM the base model's template"
        if (source.folder / TEMPLATE).is_file():
            consequence += f"; launch.sh --chat-template {source.name}/{TEMPLATE} uses this one"
    else:
        consequence = "they are exported, and the card says so: with them, answers may differ from those measured here"
    used = "these" if source.base().get("tokens") else "the base model's"  # its training changed them
    return f"{source.folder}: comes with {what} ({names}){unknown}. peftrun itself uses {used}; {consequence}"


def _read_tokenizer(folder: Path) -> Any:
    """The settings that determine the tokens of a text, comparable with ==; None without tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        from tokenizers import Tokenizer

        text = Tokenizer.from_file(str(file)).to_str()  # normalized: versions of tokenizers write different JSON
    except Exception as error:  # tokenizers raises plain Exception
        return str(error)
    return {key: value for key, value in json.loads(text).items() if key not in LENGTHS}
