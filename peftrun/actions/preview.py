"""Show rows as they will be learned, before anything is paid for it. No weights are loaded, and no torch unless the tokenizer needs it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import classifier_head, run_overrides
from peftrun.artifacts.run_layout import PREVIEW_PAGE, ROWS
from peftrun.checks import cross_group
from peftrun.checks import methods as method_checks
from peftrun.config import override_syntax
from peftrun.config.schema.actions import PreviewAction, TrainAction
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import RunSpec
from peftrun.errors import DataError
from peftrun.io import atomic_files
from peftrun.result import RunResult
from peftrun.results.preview import page, printed
from peftrun.runs import execute
from peftrun.system import late_torch

ACTION_KEYS = ("action", "rows", "at", "tokens")  # what is typed for this action itself
LEARNING_NOTES = {  # of these kinds it is no span of the text
    "seq_cls": "learned is the label of the whole text",
    "token_cls": "learned is the tag of each word, at the word's first token",
    "seq2seq": "learned is the text that is written; the one that is read is given",
}
OBJECTIVE_NOTES = {
    "dpo": "learned is to prefer the chosen answer to the rejected one",
    "orpo": "learned is to prefer the chosen answer to the rejected one, and beside that the whole chosen text, its prompt too",
    "kto": "an answer that is wanted is made likelier, one that is not wanted less likely",
    "reward": "learned is the score of a whole text: that of the chosen one above that of the rejected one",
}


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The first training rows, or one row of the data, on the terminal and in files; and what all rows are together.

    Raises: ConfigError: training would refuse the config. PeftrunError: what it would find at fault with base or rows. DataError: the data
        has no such row.
    """
    assert isinstance(spec.action, PreviewAction)
    alone = dataclasses.replace(spec, adapter={}, active=None)  # one that was named has chosen base and task
    cross_group.as_training(alone, TrainAction("train", resume=None, evaluate_before=True, samples=0))
    late_torch.defer_torch_import()
    views, statistics = (execute.import_quietly(f"peftrun.tasks.row_{name}") for name in ("view", "statistics"))
    reader = _reader(spec)
    found = _load_rows(spec, reader)
    counts = statistics.compute_statistics(found, spec.task)
    chosen, lines = _select_rows(found, views.split_rows(found, spec.task), spec.action, views)
    rows = [views.describe_row(row, split, spec.task, reader.tokenizer, spec.action.tokens) for row, split in chosen]
    notes = [*lines, *_build_notes(spec)]
    seen = execute.import_quietly("peftrun.tasks").flattering(
        found, spec.task
    )  # was said when rows were read; the page keeps it
    told = [*filter(None, [seen]), *notes]
    _write_files(
        out_dir, rows, page.render_preview(_describe_source(spec), f"{reader.name} reads them", rows, counts, told)
    )
    _show_rows(rows, counts, notes)
    facts = {"base": {"name": reader.name}, "data": found.describe(), "preview": counts}
    return RunResult(
        out_dir, facts, summary=list(_build_summary(counts, out_dir)), next_commands=[_build_train_command(out_dir)]
    )


def _reader(spec: RunSpec) -> Any:
    """What reads rows for the base, with what the method puts before each."""
    found = execute.import_quietly("peftrun.models.tokenizer").load_tokenizer_info(
        spec.model, classifier_head.get_task_head(spec.task)
    )
    return dataclasses.replace(found, virtual=method_checks.virtual_tokens(spec.lora))


def _load_rows(spec: RunSpec, reader: Any) -> Any:
    tasks = execute.import_quietly("peftrun.tasks")
    found = tasks.load_rows_for_reader(spec.task, reader)
    tasks.check_enough_rows(found, spec.task)
    return found


def _select_rows(
    found: Any, splits: dict[str, list[Any]], action: PreviewAction, views: Any
) -> tuple[list[tuple[Any, str]], list[str]]:
    """Rows to be shown, each with its split; and why a row that was asked for is not among them.

    Raises: DataError: no source has such a row.
    """
    if action.at is None:
        return [(row, views.TRAINING) for row in splits[views.TRAINING][: action.rows]], []
    rows = [(row, split) for split, some in splits.items() for row in some if views.parse_row_number(row) == action.at]
    names = views.names_of(found.tally.read)
    left_out = [one for one in found.tally.left_out if views.split_row_location(one[0])[1] == action.at]
    if not rows and not left_out:
        read = ", ".join(f"{names[source]} has {count} rows" for source, count in found.tally.read.items())
        raise DataError(
            f"action.at={action.at}: there is no such row; {read}; type action.at={max(found.tally.read.values())}"
        )
    return rows, [
        f"{_named(where, names, views)} is left out: {why}{f' ({tokens} tokens)' if tokens else ''}"
        for where, why, tokens in left_out
    ]


def _named(where: str, names: dict[str, str], views: Any) -> str:
    source, _ = views.split_row_location(where)
    return f"{names[source]}{where.removeprefix(source)}"


def _build_notes(spec: RunSpec) -> Iterator[str]:
    task, trainer = spec.task, spec.trainer
    if task.kind in LEARNING_NOTES:
        yield LEARNING_NOTES[task.kind]
    if isinstance(task.objective, GrpoObjective):
        yield (
            f"nothing of these prompts is learned: {task.objective.num_generations} answers to each are drawn, of at most "
            f"{task.objective.max_completion_length} tokens, and rewarded by {', '.join(task.objective.rewards)}"
        )
    elif task.objective is not None:
        yield OBJECTIVE_NOTES[task.objective.name]
    virtual = method_checks.virtual_tokens(spec.lora)
    if virtual:
        yield f"lora.num_virtual_tokens={virtual}: training puts so many before each row; they are not among the tokens shown and counted here"
    if trainer.packing:
        yield f"trainer.packing=true: shown before they are packed; training puts several into one of {task.max_length} tokens"


def _write_files(out_dir: Path, rows: list[dict[str, Any]], text: str) -> None:
    execute.import_quietly("peftrun.tasks.row_view").write_rows(rows, out_dir)
    atomic_files.write_text(out_dir / PREVIEW_PAGE, text)


def _show_rows(rows: list[dict[str, Any]], counts: dict[str, Any], notes: list[str]) -> None:
    for row in rows:
        console.print_marked(printed.format_row(row))
    for note in notes:
        console.print_result(note)
    console.print_result("tokens  training rows")
    for line in printed.format_histogram(counts["histogram"]):
        console.print_result(line)
    console.print_result("")


def _build_summary(counts: dict[str, Any], out_dir: Path) -> Iterator[tuple[str, str]]:
    for name, one in counts["splits"].items():
        learned = (
            f", {one['learned_tokens']:,} of them learned ({one['share_learned']:.1%})" if one["learned_tokens"] else ""
        )
        lengths = f"{one['shortest']:,} to {one['longest']:,} a row, median {one['median']:,}"
        yield f"{name} rows", f"{one['rows']:,}; {one['tokens']:,} tokens{learned}; {lengths}"
    for name, one in counts["sources"].items():
        used = ", ".join(f"{one[split]:,} {split}" for split in counts["splits"] if one.get(split))
        yield "source", f"{name}: {one['rows']:,} rows; {used or 'none used'}"
        yield from (("left out", f"{number:,}: {why}") for why, number in one["left_out"].items())
        if one["cut"]:
            yield "cut", f"{one['cut']:,}: what lies beyond the limit of tokens is not read"
    yield "page", console.shorten_path(out_dir / PREVIEW_PAGE)
    yield "rows", console.shorten_path(out_dir / ROWS)


def _describe_source(spec: RunSpec) -> str:
    return execute.import_quietly("peftrun.tasks").describe_source(spec.task)


def _build_train_command(out_dir: Path) -> str:
    """The command that trains what was shown."""
    typed = [
        text
        for text in run_overrides.read_overrides(out_dir)
        if text.lstrip("+").partition("=")[0].removeprefix("action.") not in ACTION_KEYS
    ]
    return override_syntax.format_shell_command(typed)
