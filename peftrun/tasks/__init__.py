"""Task types: the rows to train and evaluate on, and the metrics, one module per type."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from peftrun import console
from peftrun.artifacts import adapter_origin
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.config import usage
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.data import columns, sources
from peftrun.errors import ConfigError, DataError
from peftrun.models.reader import TokenizerInfo
from peftrun.tasks import length_checks, row_cache, rows
from peftrun.tasks.rows import Rows


def check_model_fits(kind: str, config: Any, name: str) -> None:
    """Raises: ConfigError: a model with this config cannot be trained on this task type."""
    encoder_decoder = bool(config.is_encoder_decoder)
    if encoder_decoder and kind != "seq2seq":
        raise ConfigError(
            f"task.type={kind}: {name} has an encoder and a decoder; type task=translation, or choose another model"
        )
    if not encoder_decoder and kind == "seq2seq":
        raise ConfigError(
            f"task.type=seq2seq: {name} has no separate decoder; type model=pretrained model.name_or_path=google-t5/t5-small, or another task"
        )


def load_task_rows(task: TaskSpec, base: Any, virtual: int = 0) -> Rows:
    """The task's rows as token ids, checked against the limits of this base model.

    Args: virtual: number of virtual tokens that an adapter prepends to each row.
    Raises: ConfigError: the base model does not fit the task type. DataError: see `load_rows` of the type, and `length_checks`.
    """
    return load_rows_for_reader(task, length_checks.build_reader(base, virtual))


def load_rows_for_reader(task: TaskSpec, reader: TokenizerInfo) -> Rows:
    """The same where only the tokenizer and the config of the base model are loaded: needs no torch.

    Warns if evaluation rows are training rows too.
    """
    check_model_fits(task.type, reader.config, reader.name)
    console.set_activity("reading and tokenizing rows")
    loaded = row_cache.load_cached_rows(rows.import_rows_module(task.type), task, reader.tokenizer)
    length_checks.check_lengths(loaded, reader)
    if isinstance(task.objective, GrpoObjective):
        length_checks.check_completion_fits(loaded, reader, task.objective.max_completion_length)
    warning = explain_overlap(loaded, task)
    if warning:
        console.print_warning(warning)
    return loaded


def explain_overlap(loaded: Rows, task: TaskSpec) -> str | None:
    """Warning that the metrics are too good because evaluation rows are training rows too, and the fix; None if none are."""
    overlap = loaded.learned_too
    if not overlap:
        return None
    eval_source = sources.get_eval_source(task.data)
    if eval_source is None:
        key = "task.data"
        advice = "type task.data.deduplicate=true, or name separate evaluation rows with task.data.test_path=FILE"
    else:
        key = eval_source.label
        advice = "name other rows, or type task.data.test_path=null task.data.test_split=null to split some off"
    return f"{key}: {overlap:,} of {len(loaded.held_out):,} evaluation rows are training rows too, so the metrics on them are too good; {advice}"


def check_enough_rows(loaded: Rows, task: TaskSpec) -> None:
    """Raises: DataError: no training row is left once the validation rows are split off."""
    count = task.data.num_validation_rows
    if count is not None and count >= len(loaded.train):
        raise DataError(
            f"task.data.num_validation_rows={count}: there are {len(loaded.train)} training rows to take them from; "
            f"type task.data.num_validation_rows={len(loaded.train) // 5}"
        )


def check_data_columns(task: TaskSpec) -> None:
    """Checks the columns of every source before the base model is loaded. Raises: DataError: see `columns.check_columns`."""
    if task.lm_eval is None:  # the harness loads its own rows
        columns.check_columns(usage.strip_tracking(task))


def describe_source(task: TaskSpec) -> str:
    """The source of a task's rows, without paths of this machine: it is stored with adapters and compared elsewhere."""
    data = task.data
    if data.source == "package":
        return f"{task.type} rows of {data.package}:{data.path}"
    if data.source == "hub":
        return f"{task.type} rows of {data.path}{f' ({data.config_name})' if data.config_name else ''}"
    return f"{task.type} rows of {Path(data.path).name}"


def describe_training_data(task: TaskSpec, loaded: Rows) -> dict[str, Any]:
    """The entries of peftrun.json about what an adapter was trained on: the rows, and the task without paths of this machine."""
    values = adapter_origin.select_portable_task(asdict(usage.strip_tracking(task)))
    return {"trained_on": describe_source(task), "rows": loaded.digest, **({"task": values} if values else {})}


def warn_on_other_dataset(task: TaskSpec, loaded: Rows, adapters: Mapping[str, AdapterRef]) -> None:
    """Warns if an adapter is evaluated on another dataset than it was trained on, or maybe on rows of its training."""
    source = describe_source(task)
    for name, adapter in adapters.items():
        metadata = adapter.metadata or {}
        trained_on = metadata.get("trained_on")
        # Same source, other digest: the split may differ, so evaluation rows may have been training rows.
        changed = trained_on == source and metadata.get("rows") not in (None, loaded.digest)
        if changed and task.data.test_path is None:
            console.print_warning(
                f"adapter {name}: the rows differ from those of its training (the file has changed, or task.data is typed otherwise), so it may be "
                "evaluated on rows that it was trained on; name separate rows with task.data.test_path"
            )
        if trained_on and trained_on != source:
            console.print_warning(
                f"adapter {name} was trained on {trained_on} and is evaluated on {source}; to evaluate it on its own rows, "
                "omit task= if its run is here, else type its task"
            )


def import_task_module(kind: str) -> ModuleType:
    """The module of a task type: `load_rows(task, tokenizer)` and `evaluate(model, tokenizer, rows, batch_size, task)`.

    A type with a head also has `collator(tokenizer)`; `evaluate_in_detail`, if there is one, adds facts for the record to the metrics.
    """
    return import_module(f"peftrun.tasks.{kind}")
