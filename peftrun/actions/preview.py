"""Show training rows as tokenized for the loss. No weights are loaded, and no torch is imported unless the tokenizer needs it."""

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

LEARNING_NOTES = {  # task types whose target is not a span of the input text
    "seq_cls": "the target is the label of the whole text",
    "token_cls": "the target is the tag of each word, at the word's first token",
    "seq2seq": "the target is the decoder's text; the encoder's text is only read",
}
OBJECTIVE_NOTES = {
    "dpo": "the loss prefers the chosen answer to the rejected one",
    "orpo": "the loss prefers the chosen answer to the rejected one, and also covers the whole chosen text, prompt included",
    "kto": "the loss makes a desirable answer more likely, an undesirable one less likely",
    "reward": "the loss puts the score of the chosen text above that of the rejected one",
}


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Shows the first training rows, or one row of the data, and statistics of all rows, on the terminal and in files.

    Raises: ConfigError: training would refuse the config. PeftrunError: training would refuse the base model or the rows.
        DataError: the data has no row with the number `action.at`.
    """
    assert isinstance(spec.action, PreviewAction)
    # `adapter` has already chosen base model and task, and training itself takes no adapter.
    baseline_spec = dataclasses.replace(spec, adapter={}, active_adapter=None)
    cross_group.as_training(
        baseline_spec, TrainAction("train", resume=None, evaluate_before=True, num_samples=0, stack=False)
    )
    late_torch.defer_torch_import()
    views, statistics = (execute.import_quietly(f"peftrun.tasks.row_{name}") for name in ("view", "statistics"))
    tokenizer_module = execute.import_quietly("peftrun.models.tokenizer")
    row_reader = dataclasses.replace(
        tokenizer_module.load_tokenizer_info(spec.model, classifier_head.get_task_head(spec.task)),
        virtual=method_checks.virtual_tokens(spec.lora),
    )
    tasks = execute.import_quietly("peftrun.tasks")
    task_rows = tasks.load_rows_for_reader(spec.task, row_reader)
    tasks.check_enough_rows(task_rows, spec.task)
    counts = statistics.compute_statistics(task_rows, spec.task)
    chosen, reasons = _select_rows(task_rows, views.split_rows(task_rows, spec.task), spec.action, views)
    rows = [
        views.describe_row(row, split, spec.task, row_reader.tokenizer, spec.action.tokens) for row, split in chosen
    ]
    notes = [*reasons, *_build_notes(spec)]
    leakage = tasks.explain_overlap(task_rows, spec.task)  # logged while rows were loaded; the page repeats it
    page_notes = [*filter(None, [leakage]), *notes]
    views.write_rows(rows, out_dir)
    subtitle = f"tokenized for {row_reader.name}"
    text = page.render_preview(tasks.describe_source(spec.task), subtitle, rows, counts, page_notes)
    atomic_files.write_text(out_dir / PREVIEW_PAGE, text)
    _show_rows(rows, counts, notes)
    facts = {"base": {"name": row_reader.name}, "data": task_rows.describe(), "preview": counts}
    train_overrides = [
        text
        for text in run_overrides.read_overrides(out_dir)
        if text.lstrip("+~").partition("=")[0].partition(".")[0] != "action"
    ]
    return RunResult(
        out_dir,
        facts,
        summary=list(_build_summary(counts, out_dir)),
        next_commands=[override_syntax.format_shell_command(train_overrides, run_overrides.read_search_path(out_dir))],
    )


def _select_rows(
    task_rows: Any, splits: dict[str, list[Any]], action: PreviewAction, views: Any
) -> tuple[list[tuple[Any, str]], list[str]]:
    """(row, split) pairs to show, and why the row `action.at` was left out of training, where it was.

    Raises: DataError: no source has a row with that number.
    """
    if action.at is None:
        return [(row, views.TRAINING) for row in splits[views.TRAINING][: action.rows]], []
    rows = [
        (row, split)
        for split, split_rows in splits.items()
        for row in split_rows
        if views.parse_row_number(row) == action.at
    ]
    names = views.names_of(task_rows.tally.read)
    left_out = [entry for entry in task_rows.tally.left_out if views.split_row_location(entry[0])[1] == action.at]
    if not rows and not left_out:
        counts = ", ".join(f"{names[source]} has {count} rows" for source, count in task_rows.tally.read.items())
        raise DataError(
            f"action.at={action.at}: no source has this row; {counts}; type action.at={max(task_rows.tally.read.values())}"
        )
    reasons = []
    for location, reason, tokens in left_out:  # location: "SOURCE row NUMBER"
        source, _ = views.split_row_location(location)
        size = f" ({tokens} tokens)" if tokens else ""
        reasons.append(f"{names[source]}{location.removeprefix(source)} is left out: {reason}{size}")
    return rows, reasons


def _build_notes(spec: RunSpec) -> Iterator[str]:
    task, trainer = spec.task, spec.trainer
    if task.type in LEARNING_NOTES:
        yield LEARNING_NOTES[task.type]
    if isinstance(task.objective, GrpoObjective):
        yield (
            f"the loss covers no token of these prompts: {task.objective.num_generations} answers to each are sampled, of at most "
            f"{task.objective.max_completion_length} tokens, and rewarded by {', '.join(task.objective.rewards)}"
        )
    elif task.objective is not None:
        yield OBJECTIVE_NOTES[task.objective.name]
    virtual = method_checks.virtual_tokens(spec.lora)
    if virtual:
        yield f"lora.num_virtual_tokens={virtual}: training prepends as many virtual tokens to each row; they are not shown or counted here"
    if trainer.packing:
        yield f"trainer.packing=true: rows are shown before packing; training packs several into one of {task.max_length} tokens"


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
    for name, figures in counts["splits"].items():
        learned = (
            f", {figures['learned_tokens']:,} of them learned ({figures['share_learned']:.1%})"
            if figures["learned_tokens"]
            else ""
        )
        lengths = f"{figures['shortest']:,} to {figures['longest']:,} a row, median {figures['median']:,}"
        yield f"{name} rows", f"{figures['rows']:,}; {figures['tokens']:,} tokens{learned}; {lengths}"
    for name, figures in counts["sources"].items():
        used = ", ".join(f"{figures[split]:,} {split}" for split in counts["splits"] if figures.get(split))
        yield "source", f"{name}: {figures['rows']:,} rows; {used or 'none used'}"
        yield from (("left out", f"{number:,}: {why}") for why, number in figures["left_out"].items())
        if figures["cut"]:
            yield "cut", f"{figures['cut']:,}: truncated at the token limit"
    yield "page", console.shorten_path(out_dir / PREVIEW_PAGE)
    yield "rows", console.shorten_path(out_dir / ROWS)
