"""What is learned: rows and metrics, one file a kind."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from peftrun import console
from peftrun.artifacts import adapter_folder
from peftrun.config import usage
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.data import columns, sources
from peftrun.errors import ConfigError, DataError
from peftrun.models.reader import TokenizerInfo
from peftrun.tasks import length_checks, row_cache, rows
from peftrun.tasks.rows import Rows


def check_model_fits(kind: str, config: Any, name: str) -> None:
    """Raises: ConfigError: a model with this config cannot learn rows of this kind."""
    both = bool(config.is_encoder_decoder)
    if both and kind != "seq2seq":
        raise ConfigError(
            f"task.kind={kind}: {name} has an encoder and a decoder; type task=translation, or choose another model"
        )
    if not both and kind == "seq2seq":
        raise ConfigError(
            f"task.kind=seq2seq: {name} has no decoder of its own; type model=pretrained model.name_or_path=google-t5/t5-small, or another task"
        )


def load_task_rows(task: TaskSpec, base: Any, virtual: int = 0) -> Rows:
    """The task's rows, each of which this base can read.

    Args: virtual: tokens that an adapter puts before each.
    Raises: ConfigError: the base cannot learn this kind. DataError: see the kind's `load_rows`, and `limits`.
    """
    return load_rows_for_reader(task, length_checks.build_reader(base, virtual))


def load_rows_for_reader(task: TaskSpec, reader: TokenizerInfo) -> Rows:
    """The same for a base of which only what reads rows is there. No torch. Warns of held-out rows that are training rows too."""
    check_model_fits(task.kind, reader.config, reader.name)
    console.set_activity("reading rows and making tokens of them")
    found = row_cache.load_cached_rows(rows.import_rows_module(task.kind), task, reader.tokenizer)
    length_checks.check_lengths(found, reader)
    if isinstance(task.objective, GrpoObjective):
        length_checks.check_completion_fits(found, reader, task.objective.max_completion_length)
    warning = flattering(found, task)
    if warning:
        console.print_warning(warning)
    return found


def flattering(found: Rows, task: TaskSpec) -> str | None:
    """Why what is measured on the held-out rows is better than it would be on others, and what to type; None: none of them is learned."""
    seen = found.learned_too
    if not seen:
        return None
    apart = sources.get_eval_source(task.data)
    if apart is None:
        line, advice = (
            "task.data",
            "type task.data.deduplicate=true, or hold out rows of their own with task.data.eval_path=FILE",
        )
    else:
        line, advice = (
            apart.told,
            "name other rows, or type task.data.eval_path=null task.data.eval_split=null to have some split off",
        )
    return f"{line}: {seen:,} of {len(found.held_out):,} held-out rows are training rows too, so what is measured on them flatters; {advice}"


def check_enough_rows(found: Rows, task: TaskSpec) -> None:
    """Raises: DataError: too few training rows are left once those to validate on are taken from them."""
    apart = task.data.validation_rows
    if apart is not None and apart >= len(found.train):
        raise DataError(
            f"task.data.validation_rows={apart}: there are {len(found.train)} training rows to take them from; "
            f"type task.data.validation_rows={len(found.train) // 5}"
        )


def check_data_columns(task: TaskSpec) -> None:
    """Looks at the columns of every source before the base is loaded. Raises: DataError: see `columns.check`."""
    if task.lm_eval is None:
        columns.check_columns(usage.strip_tracking(task))


def describe_source(task: TaskSpec) -> str:
    """Where a task's rows come from, in words that mean the same elsewhere."""
    data = task.data
    if data.source == "package":
        return f"{task.kind} rows of {data.package}:{data.path}"
    if data.source == "hub":
        return f"{task.kind} rows of {data.path}{f' ({data.name})' if data.name else ''}"
    return f"{task.kind} rows of {Path(data.path).name}"


def describe_training_data(task: TaskSpec, found: Rows) -> dict[str, str]:
    """What is noted beside an adapter of the rows that it has learned."""
    return {"learned": describe_source(task), "rows": found.digest}


def warn_on_other_dataset(task: TaskSpec, found: Rows, adapters: dict[str, str]) -> None:
    """Says aloud where an adapter is measured on rows of another source than it learned from, or perhaps on some that it has learned."""
    for name, path in adapters.items():
        facts = adapter_folder.read_peftrun_metadata(adapter_folder.resolve_adapter_dir(path, name)) or {}
        learned = facts.get("learned")
        if (
            learned == describe_source(task)
            and facts.get("rows") not in (None, found.digest)
            and task.data.eval_path is None
        ):
            console.print_warning(
                f"adapter {name}: these are not the rows of its training (the file has changed, or task.data is typed otherwise), so some that it is "
                "measured on may be among those that it has learned; rows of their own are named by task.data.eval_path"
            )
        if learned and learned != describe_source(task):
            console.print_warning(
                f"adapter {name} was trained on {learned} and is evaluated on {describe_source(task)}; to measure it on its own rows, "
                "omit task= if its run is here, else type its task"
            )


def import_task_module(kind: str) -> ModuleType:
    """The module of a task kind: `load_rows(task, tokenizer)` and `evaluate(model, tokenizer, rows, batch_size, task)`."""
    return import_module(f"peftrun.tasks.{kind}")
