"""Rows of a data set on the Hub. Its csv, json and txt files are read as such files are read elsewhere."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from peftrun.data import files, tables
from peftrun.data.files import UTF8, Row

READERS: dict[str, Callable[..., Iterator[Row]]] = {
    "csv": files.read_csv_rows,
    "json": files.read_json_rows,
    "text": files.read_text_rows,
}  # by datasets' names
# What a data set's card may say of its files. Any other setting would change what is read, or how a reader that is not ours reads.
SUPPORTED_KEYS = {
    "name",
    "version",
    "data_dir",
    "data_files",
    "description",
    "features",
    "sep",
    "delimiter",
    "encoding",
}
IGNORED_KEYS = {"chunksize", "block_size", "use_threads", "on_mixed_types", "parse_agent_traces"}
CACHE_BUILDER = "cache"  # datasets' name for what it has prepared earlier, when the Hub cannot be reached


def load_hub_rows(path: str, name: str | None, revision: str | None, split: str, streaming: bool) -> Iterator[Row]:
    """Every row of a split. Raises: whatever datasets raises where it is not there; ValueError: see `_reader`."""
    builder = _load_builder(path, name, revision)
    if builder.name not in READERS:
        return _read_typed_rows(builder, split, streaming)
    return _read_verbatim_rows(builder, split, streaming)


def _load_builder(path: str, name: str | None, revision: str | None) -> Any:
    from datasets import load_dataset_builder

    try:
        found = load_dataset_builder(path, name=name, revision=revision)
        if found.name != CACHE_BUILDER or found.info.builder_name not in READERS:
            return found
        lost: Exception = ConnectionError(f"the Hub cannot be reached, and {path} was not fetched before")
    except ConnectionError as error:
        lost = error
    return load_dataset_builder(_find_cached_snapshot(path, revision, lost), name=name)


def _find_cached_snapshot(path: str, revision: str | None, lost: Exception) -> str:
    """The folder of files that were fetched when the Hub could be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return str(snapshot_download(path, repo_type="dataset", revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise lost from None


def _read_typed_rows(builder: Any, split: str, streaming: bool) -> Iterator[Row]:
    if streaming:
        found = builder.as_streaming_dataset(split)
    else:
        builder.download_and_prepare()
        found = builder.as_dataset(split)
    return tables.convert_batches(found.with_format("arrow").iter(tables.BATCH_ROWS))


def _read_verbatim_rows(builder: Any, split: str, streaming: bool) -> Iterator[Row]:
    from datasets import DownloadConfig, ReadInstruction
    from datasets.download import DownloadManager, StreamingDownloadManager

    read = _choose_reader(builder)
    manager = (StreamingDownloadManager if streaming else DownloadManager)(download_config=DownloadConfig())
    parts = manager.download_and_extract({str(name): list(some) for name, some in builder.config.data_files.items()})

    def whole(name: str) -> Iterator[Row]:
        return (row for file in manager.iter_files(parts[name]) for row in _read_file_rows(file, read))

    if split in parts:
        return whole(split)
    counts = {name: sum(1 for _ in whole(name)) if name in split else 0 for name in parts}
    wanted = ReadInstruction.from_spec(split).to_absolute(counts)  # train[:10%]+test
    return chain.from_iterable(islice(whole(one.splitname), one.from_, one.to) for one in wanted)


def _choose_reader(builder: Any) -> Callable[[BinaryIO], Iterator[Row]]:
    """What reads its files, as the data set's card says. Raises: ValueError: it says what is not read here."""
    config = builder.config
    usual = type(config)()
    said = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in IGNORED_KEYS}
    strange = [
        f"{name}={value}"
        for name, value in said.items()
        if name not in SUPPORTED_KEYS and value != getattr(usual, name)
    ]
    if strange:
        raise ValueError(
            f"its card asks for {strange[0]}, which peftrun does not read; fetch the file, write it without that, and type task.data.source=file task.data.path=FILE"
        )
    encoding = UTF8 if said["encoding"] in (None, "utf-8") else said["encoding"]
    if said.get("sep") == "\t":
        return partial(files.read_tsv_rows, encoding=encoding)
    return partial(READERS[builder.name], encoding=encoding, **({"delimiter": said["sep"]} if "sep" in said else {}))


def _read_file_rows(file: str, read: Callable[[BinaryIO], Iterator[Row]]) -> Iterator[Row]:
    """Raises: ValueError: its rows cannot be read; with the file's name."""
    import fsspec

    with fsspec.open(file, "rb") as stream:
        try:
            yield from read(stream)
        except ValueError as error:
            raise ValueError(f"{Path(file).name}: {error}") from None
