"""A tokenizer and a chat template that lie beside an adapter: which files, and whether they are the base's. Light."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftrun.artifacts import base_files
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.config.schema.run import ModelSpec

TEMPLATE = "chat_template.jinja"
FILES = (  # as transformers saves them, by their full names: nothing else that lies there may be published
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm", "qwen.tiktoken", "tiktoken.model",
    "tekken.json", TEMPLATE,
)  # fmt: skip
MORE_TEMPLATES = "additional_chat_templates/*.jinja"
LENGTHS = ("truncation", "padding")  # settings of a tokenizer that do not change which tokens a text has


def files(folder: Path) -> list[Path]:
    """Those in a folder, relative to it."""
    named = [Path(name) for name in FILES if (folder / name).is_file()]
    return named + [one.relative_to(folder) for one in sorted(folder.glob(MORE_TEMPLATES))]


def differing(folder: Path, model: Mapping[str, Any] | None) -> list[str] | None:
    """What of them is another than the base's: `tokenizer`, `chat template`; None where that cannot be seen on this machine."""
    base = base_files.find_base_dir(ModelSpec(**model)) if model else None
    if base is None:
        return None
    from peftrun.artifacts import fingerprint

    parts = {"tokenizer": _pieces, "chat template": fingerprint.of_template}
    found = {part: (read(folder), read(base)) for part, read in parts.items()}
    own, other = found["tokenizer"]
    if own is not None and other is None:  # the base's is in another form
        return None
    return [part for part, (own, other) in found.items() if own is not None and own != other]


def told(source: ExportSource, differs: list[str] | None, target: str) -> str | None:
    """One line on files that change how text is read; None where there are none, or they are the base's own."""
    names = ", ".join(map(str, files(source.folder)))
    if not names or differs == []:
        return None
    what = (
        f"another {' and another '.join(differs)} than its base's"
        if differs
        else "a tokenizer or chat template of its own"
    )
    unknown = "" if differs else "; whether they are its base's could not be seen on this machine"
    return f"{source.folder}: brings {what} ({names}){unknown}. peftrun answers and measures by the base's; {_becomes(source, target)}"


def _becomes(source: ExportSource, target: str) -> str:
    """What the export makes of them."""
    if target == "gguf":
        return "a GGUF adapter holds none, so llama.cpp uses the base's: to use these, put them into a copy of the base and convert that"
    if target == "vllm":
        template = (
            f", and launch.sh --chat-template {source.name}/{TEMPLATE} asks through this one"
            if (source.folder / TEMPLATE).is_file()
            else ""
        )
        return f"they go into the export, whose command leaves vLLM the base's template{template}"
    return "they go into the export, and its card says so: what others load with them may answer otherwise than was measured here"


def _pieces(folder: Path) -> Any:
    """What decides which tokens a text has; None where there is no file that says so."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        from tokenizers import Tokenizer

        text = Tokenizer.from_file(str(file)).to_str()  # in one spelling, whichever version wrote it
    except Exception as error:  # tokenizers raises Exception itself
        return str(error)
    return {key: value for key, value in json.loads(text).items() if key not in LENGTHS}
