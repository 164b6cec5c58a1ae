"""Reads rows of a dataset on the Hub. Its csv, json and txt files are read like local files, not by datasets."""

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
}  # by the names of datasets' builders
# Settings in a dataset card that our readers follow, or that do not matter to them. Any other would change what is read.
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
CACHE_BUILDER = "cache"  # datasets' builder for prepared rows in its cache, when the Hub cannot be reached


def load_hub_rows(path: str, name: str | None, revision: str | None, split: str, streaming: bool) -> Iterator[Row]:
    """Every row of a split. Raises: errors of datasets if it is not found; ValueError: see `_choose_reader`."""
    from datasets import load_dataset_builder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline: Exception | None = None
    try:
        builder = load_dataset_builder(path, name=name, revision=revision)
        if builder.name == CACHE_BUILDER and builder.info.builder_name in READERS:
            # The cache holds the rows as datasets parsed them, so our readers need the downloaded files.
            offline = ConnectionError(f"the Hub cannot be reached, and {path} was not fetched before")
    except ConnectionError as error:
        offline = error
    if offline is not None:
        try:
            folder = snapshot_download(path, repo_type="dataset", revision=revision, local_files_only=True)
        except LocalEntryNotFoundError:
            raise offline from None
        builder = load_dataset_builder(str(folder), name=name)
    if builder.name in READERS:
        return _read_verbatim_rows(builder, split, streaming)
    if streaming:
        dataset = builder.as_streaming_dataset(split)
    else:
        builder.download_and_prepare()
        dataset = builder.as_dataset(split)
    return tables.convert_batches(dataset.with_format("arrow").iter(tables.BATCH_ROWS))


def _read_verbatim_rows(builder: Any, split: str, streaming: bool) -> Iterator[Row]:
    import fsspec
    from datasets import DownloadConfig, ReadInstruction
    from datasets.download import DownloadManager, StreamingDownloadManager

    read = _choose_reader(builder)
    manager = (StreamingDownloadManager if streaming else DownloadManager)(download_config=DownloadConfig())
    data_files = {str(name): list(paths) for name, paths in builder.config.data_files.items()}
    local_files = manager.download_and_extract(data_files)  # split → its files

    def read_split(name: str) -> Iterator[Row]:
        for file in manager.iter_files(local_files[name]):
            with fsspec.open(file, "rb") as stream:
                try:
                    yield from read(stream)
                except ValueError as error:
                    raise ValueError(f"{Path(file).name}: {error}") from None

    if split in local_files:
        return read_split(split)
    # A slice, such as train[:10%]+test: percentages need the number of rows.
    counts = {name: sum(1 for _ in read_split(name)) if name in split else 0 for name in local_files}
    parts = ReadInstruction.from_spec(split).to_absolute(counts)
    return chain.from_iterable(islice(read_split(part.splitname), part.from_, part.to) for part in parts)


def _choose_reader(builder: Any) -> Callable[[BinaryIO], Iterator[Row]]:
    """The reader of the dataset's files with the settings of its card. Raises: ValueError: a setting is not supported."""
    config = builder.config
    defaults = type(config)()
    settings = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in IGNORED_KEYS}
    for name, value in settings.items():
        if name not in SUPPORTED_KEYS and value != getattr(defaults, name):
            raise ValueError(
                f"its card asks for {name}={value}, which peftrun does not support; fetch the file, write it without that, and type task.data.source=file task.data.path=FILE"
            )
    encoding = UTF8 if settings["encoding"] in (None, "utf-8") else settings["encoding"]
    if settings.get("sep") == "\t":  # without quoting, as a .tsv file
        return partial(files.read_tsv_rows, encoding=encoding)
    delimiter = {"delimiter": settings["sep"]} if "sep" in settings else {}
    return partial(READERS[builder.name], encoding=encoding, **delimiter)
