"""What a base is, by content: every tensor, the tokenizer, the chat template. Cached by file identity."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from peftrun.config.paths import cache_dir
from peftrun.errors import ModelError
from peftrun.io import atomic_files, safetensors_header

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
CHUNK = 1 << 22  # bytes
TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")


@dataclass(frozen=True)
class Fingerprint:
    """Hex sha256 digests. `weights` does not depend on how tensors are spread over files."""

    weights: str
    tokenizer: str
    chat_template: str

    def as_dict(self) -> dict[str, str]:
        """For records and `peftrun.json`."""
        return asdict(self)

    def short(self) -> str:
        """Twelve digits for people."""
        return self.weights[:12]


def fingerprint_model(folder: Path) -> Fingerprint:
    """The fingerprint of a model folder.

    Raises: ModelError: it holds no safetensors file. ArtifactError: a file is torn.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"model {folder}: holds no .safetensors file (pickles are refused); convert its weights to safetensors"
        )
    return Fingerprint(
        weights=_compute_cached("weights", files, _hash_weights),
        tokenizer=_compute_cached(
            "tokenizer", [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()], _hash_contents
        ),
        chat_template=of_template(folder) or hashlib.sha256(b"").hexdigest(),
    )


def hash_file_cached(path: Path) -> str:
    """sha256 of one file, computed once for each identity of it."""
    return _compute_cached("file", [path], lambda files: atomic_files.hash_file(files[0]))


def _compute_cached(kind: str, files: list[Path], compute) -> str:  # type: ignore[no-untyped-def]
    """`compute(files)`, remembered under the files' paths, sizes, times and inodes."""
    identity = [kind, *([str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns, s.st_ino] for f in files)]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    remembered = cache_dir() / "fingerprints" / name
    with suppress(OSError):
        return remembered.read_text(encoding="ascii")
    digest: str = compute(files)
    with suppress(atomic_files.ArtifactError):  # a read-only cache costs time, nothing else
        atomic_files.write_text(remembered, digest)
    return digest


def _hash_weights(files: list[Path]) -> str:
    lines = sorted(line for file in files for line in _hash_tensors(file))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hash_tensors(file: Path) -> list[str]:
    """`name dtype shape sha256` for each tensor of a file; read and hashed in threads, a few megabytes at a time."""
    with open(file, "rb", buffering=0) as handle, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(partial(_hash_tensor, handle.fileno()), safetensors_header.read_header(file)))


def _hash_tensor(handle: int, entry: safetensors_header.TensorEntry) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(CHUNK, entry.end - entry.begin)))
    begin = entry.begin
    while begin < entry.end:
        count = os.preadv(handle, [buffer[: entry.end - begin]], begin)
        if not count:
            raise atomic_files.ArtifactError(f"{entry.name}: the file became shorter while it was read; restore it")
        digest.update(buffer[:count])
        begin += count
    return f"{entry.name} {entry.dtype} {entry.shape} {digest.hexdigest()}"


def _hash_contents(files: list[Path]) -> str:
    return hashlib.sha256(
        "\n".join(f"{file.name} {atomic_files.hash_file(file)}" for file in files).encode()
    ).hexdigest()


def of_template(folder: Path) -> str | None:
    """sha256 of the chat template in a folder; None where there is none."""
    jinja, settings = (folder / name for name in TEMPLATE_FILES)
    text = ""
    if jinja.is_file():
        text = jinja.read_text(encoding="utf-8")
    elif settings.is_file():
        text = str(atomic_files.read_json(settings).get("chat_template") or "")
    return hashlib.sha256(text.encode()).hexdigest() if text else None
