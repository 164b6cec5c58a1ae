"""Fingerprint of a base model by content: every tensor, the tokenizer, the chat template. Cached by the files' identity."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from peftrun.artifacts import token_settings
from peftrun.config.paths import cache_dir
from peftrun.config.schema.model_fields import LOADER
from peftrun.errors import ModelError
from peftrun.io import atomic_files, safetensors_header

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
CHUNK = 1 << 22  # bytes read and hashed at once
TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")  # in transformers' order of precedence


@dataclass(frozen=True)
class Fingerprint:
    """Hex sha256 digests. `weights` is independent of how tensors are sharded over files.

    Attributes:
        arguments: what `model.arguments` changes in the model's config, as JSON; empty: nothing.
    """

    weights: str
    tokenizer: str
    chat_template: str
    arguments: str = ""

    def with_arguments(self, arguments: dict[str, Any] | None) -> "Fingerprint":
        """That of the same files loaded with `model.arguments`."""
        changed = {key: value for key, value in (arguments or {}).items() if key not in LOADER}
        return replace(self, arguments=json.dumps(changed, sort_keys=True) if changed else "")

    def as_dict(self) -> dict[str, str]:
        """For records and `peftrun.json`."""
        return {key: value for key, value in asdict(self).items() if value or key != "arguments"}

    def short(self) -> str:
        """The first twelve digits of `weights`, for messages."""
        return self.weights[:12]


def fingerprint_model(folder: Path, hashed: Mapping[Path, list[str]] | None = None) -> Fingerprint:
    """The fingerprint of a model folder. `hashed`: weight files that need not be read, with a line of `format_tensor_line` a tensor.

    A folder of `models.retokenized_base` has its base model's weights, whatever embeddings were added.

    Raises: ModelError: it holds no safetensors file. ArtifactError: a file is torn.
    """
    if retokenized := token_settings.read_settings(folder):
        own_folder, settings = retokenized
        own = fingerprint_model(own_folder, hashed)
        template = own.chat_template if settings.chat_template is None else of_template(folder) or own.chat_template
        return Fingerprint(own.weights, settings.digest_tokenizer(own.tokenizer), template)
    files = _list_weight_files(folder)
    if not files:
        raise ModelError(
            f"model {folder}: holds no .safetensors file (pickles are refused); convert its weights to safetensors"
        )
    tokenizer_files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return Fingerprint(
        weights=_compute_cached("weights", files, partial(_hash_weights, hashed=hashed or {})),
        tokenizer=_compute_cached("tokenizer", tokenizer_files, _hash_contents),
        chat_template=of_template(folder) or hashlib.sha256(b"").hexdigest(),
    )


def hash_file_cached(path: Path) -> str:
    """sha256 of one file, cached until the file changes."""
    return _compute_cached("file", [path], lambda files: atomic_files.hash_file(files[0]))


def are_weights_cached(folder: Path) -> bool:
    """Whether `fingerprint_model` need not read the weights of this folder."""
    own_folder, _ = token_settings.read_settings(folder) or (folder, None)
    return _locate_cached("weights", _list_weight_files(own_folder)).is_file()


def _list_weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _locate_cached(kind: str, files: list[Path]) -> Path:
    identity = [kind, *([str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns, s.st_ino] for f in files)]
    return cache_dir() / "fingerprints" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _compute_cached(kind: str, files: list[Path], compute: Callable[[list[Path]], str]) -> str:
    """`compute(files)`, cached under the files' paths, sizes, modification times and inodes."""
    cached = _locate_cached(kind, files)
    with suppress(OSError):
        return cached.read_text(encoding="ascii")
    digest = compute(files)
    with suppress(atomic_files.ArtifactError):  # with a read-only cache it is computed each time
        atomic_files.write_text(cached, digest)
    return digest


def _hash_weights(files: list[Path], hashed: Mapping[Path, list[str]]) -> str:
    """sha256 over the sorted lines `name dtype shape sha256` of all tensors; sorted, so that sharding does not matter."""
    lines = [
        line for file in files for line in hashed.get(file) or hash_tensors(file, safetensors_header.read_header(file))
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def hash_tensors(file: Path, entries: Sequence[safetensors_header.TensorEntry]) -> list[str]:
    """`format_tensor_line` of tensors of a file; in threads, since preadv and hashlib release the GIL."""
    with open(file, "rb", buffering=0) as handle, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(partial(_hash_tensor, handle), entries))


def _hash_tensor(file: BinaryIO, entry: safetensors_header.TensorEntry) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(CHUNK, entry.end - entry.begin)))
    for begin in range(entry.begin, entry.end, CHUNK):
        digest.update(read_chunk(file, buffer[: entry.end - begin], begin))
    return format_tensor_line(entry, digest.hexdigest())


def read_chunk(file: BinaryIO, buffer: memoryview, begin: int) -> memoryview:
    """`buffer`, filled with the bytes from `begin` on; with its own offset, so that threads can share the file.

    Raises: ArtifactError: the file became shorter.
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(file.fileno(), [buffer[done:]], begin + done)
        if not count:
            raise atomic_files.ArtifactError(f"{file.name}: became shorter while it was read; restore it")
        done += count
    return buffer


def format_tensor_line(entry: safetensors_header.TensorEntry, digest: str) -> str:
    """What identifies a tensor. `digest`: hex sha256 of its bytes."""
    return f"{entry.name} {entry.dtype} {entry.shape} {digest}"


def _hash_contents(files: list[Path]) -> str:
    return hashlib.sha256(
        "\n".join(f"{file.name} {atomic_files.hash_file(file)}" for file in files).encode()
    ).hexdigest()


def of_template(folder: Path) -> str | None:
    """sha256 of the chat template in a folder; None if there is none."""
    jinja, settings = (folder / name for name in TEMPLATE_FILES)
    text = ""
    if jinja.is_file():
        text = jinja.read_text(encoding="utf-8")
    elif settings.is_file():
        text = str(atomic_files.read_json(settings).get("chat_template") or "")
    return hashlib.sha256(text.encode()).hexdigest() if text else None
