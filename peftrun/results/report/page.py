"""report.html and curves.svg of a training run: what came out, on one page that needs no script, no network and no other file. Light."""

from collections.abc import Iterator
from datetime import datetime
from html import escape
from pathlib import Path

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.artifacts.run_layout import CURVES, REPORT_PAGE
from peftrun.formatting import format_duration, format_figure, format_number, format_signed, is_finite, is_number
from peftrun.io import atomic_files
from peftrun.results.report import config_section, cost, generations, html, learned_rows, learning_curves, provenance
from peftrun.results.report.run_facts import RunFacts, get_mapping, read_run_facts

SIGNS = {"completed": "✓", "failed": "✗", "stopped": "■", "interrupted": "‖", "running": "▶"}
LESS = ("loss", "perplexity")  # of these less is better; of the others more
NEITHER = ("desirable_log_ratio", "undesirable_log_ratio", "margin")
LATER = ("perplexity", "precision", "recall")  # what others say too
TILES = 4  # figures at the top
VARIANTS = ("use_dora", "use_rslora", "lora_fa", "lora_bias")  # of LoRA, where they are on


def write_report(folder: Path) -> Path:
    """The path of report.html, made of the run folder's files as they are now; curves.svg lies beside it.

    Raises: ArtifactError: `folder` is no run folder, or the disk refused.
    """
    run = read_run_facts(folder)
    atomic_files.write_text(folder / CURVES, learning_curves.render_curves_svg(run))
    atomic_files.write_text(
        folder / REPORT_PAGE, "".join(html.render_document(f"{run.task} on {run.base}", _render_body(run)))
    )
    return folder / REPORT_PAGE


def try_write_report(folder: Path) -> Path | None:
    """The report of a training that has just ended; None, with a warning, where it cannot be made: the run stands without it."""
    try:
        return write_report(folder)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        console.print_warning(f"no report of {console.shorten_path(folder)}: {reason}")
        return None


def _render_body(run: RunFacts) -> Iterator[str]:
    for section in (_render_headline, _render_figures, learning_curves.render_curves, generations.render_generations, learned_rows.render_learned_rows, cost.render_cost, config_section.render_config, provenance.render_provenance, provenance.render_environment):  # fmt: skip
        yield from section(run)
    yield f'<footer class="soft">Written by peftrun {escape(str(get_mapping(run.record, "versions").get("peftrun", "")))} from the files of this run folder.</footer>'


def _render_headline(run: RunFacts) -> Iterator[str]:
    status = run.status
    yield f'<header><ul class="chips"><li class="{escape(status)}">{SIGNS.get(status, "?")} {escape(status)}</li><li>{_describe_kind(run)}</li></ul>'
    yield f"<h1>{escape(run.task)}</h1>"
    yield f'<p class="lead">{escape(run.base)} · {escape(describe_method(run))}{escape(_describe_steps(run))}</p>'
    yield f'<p class="soft">{escape(" · ".join(_describe_times(run)))}</p></header>'
    if run.record.get("error"):
        yield f'<div class="card fault"><strong>What was at fault</strong><p>{escape(str(run.record["error"]))}</p></div>'
    if run.record.get("stopped"):
        yield f'<div class="card"><strong>Ended early</strong><p>{escape(str(run.record["stopped"]))}</p></div>'
    if status == "running":
        yield '<div class="card">This run goes on, or was ended by force: what is here is what had been logged.</div>'


def _describe_kind(run: RunFacts) -> str:
    """What kind of run it is; a cell leads to its sweep."""
    return (
        f'cell of <a href="../{REPORT_PAGE}">a sweep</a>'
        if (run.folder.parent / run_overrides.SWEEP).is_file()
        else "training run"
    )


def describe_method(run: RunFacts) -> str:
    """The method and its main settings in words."""
    found = run.lora
    name, option = str(found.get("method", "")), run.choices.get("lora", "")
    if name == "none":
        return "no adapter: every weight is trained"
    told = [option if option.startswith(name) or not name else f"{option} ({name})" if option else name]
    told += [f"rank {found['r']}"] if found.get("r") is not None else []
    told += [f"alpha {format_number(found['lora_alpha'])}"] if is_number(found.get("lora_alpha")) else []
    told += [key.removeprefix("use_") for key in VARIANTS if found.get(key) is True]
    targets = found.get("target_modules")
    told += [f"on {', '.join(map(str, targets)) if isinstance(targets, list) else targets}"] if targets else []
    return ", ".join(told)


def _describe_steps(run: RunFacts) -> str:
    steps = get_mapping(run.record, "training").get("steps") or max(
        (int(row["step"]) for row in run.rows if is_finite(row.get("step"))), default=0
    )
    rows = get_mapping(run.record, "data").get("train_rows")
    return (f" · {steps} steps" if steps else "") + (
        f" on {format_number(rows)} rows" if is_number(rows) and steps else ""
    )


def _describe_times(run: RunFacts) -> Iterator[str]:
    started = run.record.get("started")
    if started:
        yield f"Started {_format_time(str(started))}"
    if is_number(run.record.get("seconds")):
        yield f"took {format_duration(run.record['seconds'])}"
    if run.record.get("resumed_from"):
        yield "continued from a checkpoint"
    together = get_mapping(run.record, "together").get("cells")
    if together:
        yield f"trained together with {together - 1} other cells"
    yield console.shorten_path(run.folder)


def _format_time(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text):%d %B %Y, %H:%M} UTC"
    except ValueError:
        return text


def _render_figures(run: RunFacts) -> Iterator[str]:
    """The first figures large, all of them in a table."""
    known = sorted(dict.fromkeys([*run.after, *run.before]), key=lambda name: name in LATER)
    if not known:
        yield '<p class="soft">No figures on held-out rows were recorded.</p>'
        return
    yield f'<ul class="tiles">{"".join(_render_tile(run, name) for name in known[:TILES])}</ul>'
    data = get_mapping(run.record, "data")
    rows, learned = data.get("held_out_rows"), data.get("held_out_rows_learned")
    apart = (
        f"{learned} of which are training rows too, so that they flatter"
        if learned
        else "which nothing was learned from"
    )
    told = f"Measured on {rows} held-out rows" if rows else "Measured on held-out rows"
    head = ["figure", "n|before", "n|after", "n|difference", ""]
    table = html.render_table("Figures on held-out rows", head, [_build_row(run, name) for name in known])
    yield f'<p class="soft">{escape(told)}, {apart}.</p>{html.render_details("All figures", table)}'


def _render_tile(run: RunFacts, name: str) -> str:
    before, after = run.before.get(name), run.after.get(name)
    shown = after if after is not None else before
    change = _render_change(name, before, after)
    since = f"before {_format_figure(before)}" if after is not None and before is not None else ""
    when = "" if after is not None else "before training"
    return (
        f'<li><div class="name">{escape(name.replace("_", " "))}</div><div class="value">{_format_figure(shown)}</div>'
        f'<div class="since">{since}{when} {change}</div></li>'
    )


def _build_row(run: RunFacts, name: str) -> list[str]:
    before, after = run.before.get(name), run.after.get(name)
    apart = format_signed(after - before) if is_finite(before) and is_finite(after) else "–"
    cells = [html.render_cell(one, "n") for one in (format_number(before), format_number(after), apart)]
    return [f'<th scope="row">{escape(name)}</th>', *cells, f"<td>{_judge_change(name, before, after)}</td>"]


def _format_figure(value: float | None) -> str:
    return "–" if value is None else format_figure(value) if is_finite(value) else "no finite number"


def _render_change(name: str, before: float | None, after: float | None) -> str:
    if before is None or after is None or not (is_finite(before) and is_finite(after)):
        return ""
    verdict = _judge_change(name, before, after)
    return f'<span class="change {verdict}">{format_signed(after - before)}{f" {verdict}" if verdict else ""}</span>'


def _judge_change(name: str, before: float | None, after: float | None) -> str:
    """better, worse, or nothing where neither can be said."""
    if before is None or after is None or before == after or name in NEITHER:
        return ""
    return "better" if (after < before) == (name in LESS) else "worse"
