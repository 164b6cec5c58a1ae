"""report.html and curves.svg of a training run: a single page that needs no script, network or other file. Light."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from html import escape
from pathlib import Path

from peftrun import console
from peftrun.artifacts import lineage, run_overrides
from peftrun.artifacts.run_layout import CURVES, REPORT_PAGE
from peftrun.formatting import format_duration, format_figure, format_number, format_signed, is_finite, is_number
from peftrun.io import atomic_files
from peftrun.results.report import config_section, cost, generations, html, learned_rows, learning_curves, provenance
from peftrun.results.report.run_facts import RunFacts, get_mapping, read_run_facts

SIGNS = {"completed": "✓", "failed": "✗", "stopped": "■", "interrupted": "‖", "running": "▶"}
LOWER_IS_BETTER = ("loss", "perplexity")
NEUTRAL = ("desirable_log_ratio", "undesirable_log_ratio", "margin")  # neither direction is better
SECONDARY = ("perplexity", "precision", "recall")  # derived from, or part of, other metrics: shown after them
TILES = 4  # metrics at the top
VARIANTS = ("use_dora", "use_rslora", "lora_fa", "lora_bias")  # flags of LoRA that are named if set


def write_report(folder: Path) -> Path:
    """Write report.html and curves.svg from the run folder's current files; the path of report.html.

    Raises: ArtifactError: `folder` is no run folder, or the files cannot be written.
    """
    run = read_run_facts(folder)
    atomic_files.write_text(folder / CURVES, learning_curves.render_curves_svg(run))
    atomic_files.write_text(
        folder / REPORT_PAGE, "".join(html.render_document(f"{run.task} on {run.base}", _render_body(run)))
    )
    return folder / REPORT_PAGE


def try_write_report(folder: Path) -> Path | None:
    """The report of a training that has just ended; None, with a warning, if it cannot be written."""
    try:
        return write_report(folder)
    except Exception as error:  # whatever it is, the finished run must not fail because of its report
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        console.print_warning(f"no report of {console.shorten_path(folder)}: {reason}")
        return None


def _render_body(run: RunFacts) -> Iterator[str]:
    yield from _render_headline(run)
    yield from _render_figures(run)
    yield from learning_curves.render_curves(run)
    yield from generations.render_generations(run)
    yield from learned_rows.render_learned_rows(run)
    yield from cost.render_cost(run)
    yield from config_section.render_config(run)
    yield from provenance.render_provenance(run)
    yield from provenance.render_environment(run)
    yield f'<footer class="soft">Written by peftrun {escape(str(get_mapping(run.record, "versions").get("peftrun", "")))} from the files of this run folder.</footer>'


def _render_headline(run: RunFacts) -> Iterator[str]:
    status = run.status
    is_cell = (run.folder.parent / run_overrides.SWEEP).is_file()
    run_type = f'cell of <a href="../{REPORT_PAGE}">a sweep</a>' if is_cell else "training run"
    yield f'<header><ul class="chips"><li class="{escape(status)}">{SIGNS.get(status, "?")} {escape(status)}</li><li>{run_type}</li></ul>'
    yield f"<h1>{escape(run.task)}</h1>"
    # A record without an outcome has no steps: those logged are shown.
    logged_steps = (int(row["step"]) for row in run.rows if is_finite(row.get("step")))
    steps = get_mapping(run.record, "training").get("steps") or max(logged_steps, default=0)
    rows = get_mapping(run.record, "data").get("train_rows")
    length = f" · {steps} steps{f' on {format_number(rows)} rows' if is_number(rows) else ''}" if steps else ""
    yield f'<p class="lead">{escape(run.base)} · {escape(describe_method(run))}{escape(length)}</p>'
    yield f'<p class="soft">{escape(" · ".join(_describe_times(run)))}</p></header>'
    if run.record.get("error"):
        yield f'<div class="card fault"><strong>Error</strong><p>{escape(str(run.record["error"]))}</p></div>'
    if run.record.get("stopped"):
        yield f'<div class="card"><strong>Ended early</strong><p>{escape(str(run.record["stopped"]))}</p></div>'
    if status == "running":
        yield '<div class="card">This run is still going, or was killed: the page shows what had been logged.</div>'


def describe_method(run: RunFacts) -> str:
    """The method and its main settings as text."""
    lora = run.lora
    name, option = str(lora.get("method", "")), run.choices.get("lora", "")
    if name == "none":
        return "no adapter: every weight is trained"
    # An option whose name does not start with its method is followed by it: `dora (lora)`.
    settings = [option if option.startswith(name) or not name else f"{option} ({name})" if option else name]
    settings += [f"rank {lora['r']}"] if lora.get("r") is not None else []
    settings += [f"alpha {format_number(lora['lora_alpha'])}"] if is_number(lora.get("lora_alpha")) else []
    settings += [key.removeprefix("use_") for key in VARIANTS if lora.get(key) is True]
    targets = lora.get("target_modules")
    settings += [f"on {', '.join(map(str, targets)) if isinstance(targets, list) else targets}"] if targets else []
    return ", ".join(settings)


def _describe_times(run: RunFacts) -> Iterator[str]:
    started = run.record.get("started")
    if started:
        with suppress(ValueError):
            started = f"{datetime.fromisoformat(str(started)):%d %B %Y, %H:%M} UTC"
        yield f"Started {started}"
    if is_number(run.record.get("seconds")):
        yield f"took {format_duration(run.record['seconds'])}"
    if parents := lineage.format_runs(run.record):
        yield f"continues {parents}"
    if run.record.get("resumed_from"):
        yield "continued from a checkpoint"
    cells = get_mapping(run.record, "joint_training").get("cells")
    if cells:
        yield f"trained together with {cells - 1} other cells"
    yield console.shorten_path(run.folder)


def _render_figures(run: RunFacts) -> Iterator[str]:
    """The first metrics as tiles, all of them in a table."""
    names = sorted(dict.fromkeys([*run.after, *run.before]), key=lambda name: name in SECONDARY)
    if not names:
        yield '<p class="soft">No metrics on evaluation rows were recorded.</p>'
        return
    yield f'<ul class="tiles">{"".join(_render_tile(run, name) for name in names[:TILES])}</ul>'
    data = get_mapping(run.record, "data")
    rows, learned = data.get("held_out_rows"), data.get("held_out_rows_learned")
    overlap = (
        f"{learned} of which are training rows too, so these metrics are too good"
        if learned
        else "none of which was trained on"
    )
    source = f"Measured on {rows} evaluation rows" if rows else "Measured on evaluation rows"
    head = ["metric", "n|before", "n|after", "n|difference", ""]
    table_rows = []
    for name in names:
        before, after = run.before.get(name), run.after.get(name)
        difference = format_signed(after - before) if is_finite(before) and is_finite(after) else "–"
        cells = [html.render_cell(text, "n") for text in (format_number(before), format_number(after), difference)]
        table_rows.append(
            [f'<th scope="row">{escape(name)}</th>', *cells, f"<td>{_judge_change(name, before, after)}</td>"]
        )
    table = html.render_table("Metrics on evaluation rows", head, table_rows)
    yield f'<p class="soft">{escape(source)}, {overlap}.</p>{html.render_details("All metrics", table)}'


def _render_tile(run: RunFacts, name: str) -> str:
    before, after = run.before.get(name), run.after.get(name)
    shown = after if after is not None else before
    change = ""
    if before is not None and after is not None and is_finite(before) and is_finite(after):
        verdict = _judge_change(name, before, after)
        label = f"{format_signed(after - before)}{f' {verdict}' if verdict else ''}"
        change = f'<span class="change {verdict}">{label}</span>'
    previous = f"before {_format_figure(before)}" if after is not None and before is not None else ""
    when = "" if after is not None else "before training"
    return (
        f'<li><div class="name">{escape(name.replace("_", " "))}</div><div class="value">{_format_figure(shown)}</div>'
        f'<div class="since">{previous}{when} {change}</div></li>'
    )


def _format_figure(value: float | None) -> str:
    return "–" if value is None else format_figure(value) if is_finite(value) else "no finite number"


def _judge_change(name: str, before: float | None, after: float | None) -> str:
    """better, worse, or empty if neither applies."""
    if before is None or after is None or before == after or name in NEUTRAL:
        return ""
    return "better" if (after < before) == (name in LOWER_IS_BETTER) else "worse"
