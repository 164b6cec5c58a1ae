"""Cost of a run: share of trained parameters, adapter size, time and memory, each as a bar to scale. Light."""

from collections.abc import Iterator
from html import escape

from peftrun.artifacts.run_layout import ADAPTER
from peftrun.formatting import format_bytes, format_duration, format_number, is_number
from peftrun.io import atomic_files
from peftrun.results.report.run_facts import RunFacts, get_mapping

PHASES = {  # keys of the record's timings, in chronological order
    "evaluate_before_seconds": "evaluation before",
    "samples_before_seconds": "samples before",
    "train_seconds": "training",
    "evaluate_after_seconds": "evaluation after",
    "samples_after_seconds": "samples after",
}
REST = "rest: imports, base model, rows, saving"


def render_cost(run: RunFacts) -> Iterator[str]:
    """Bars with their values as text; nothing if the record holds none of them."""
    sections: list[str] = []
    trained, total = run.record.get("trainable_parameters"), run.record.get("parameters")
    if is_number(trained) and is_number(total) and total:
        text = f"{format_number(trained)} of {format_number(total)} ({trained / total:.2%})"
        sections += _render_bar("Trained parameters", text, trained / total)
    size = get_mapping(run.record, "size")
    adapter, base = size.get("adapter_bytes"), size.get("base_bytes")
    if is_number(adapter) and is_number(base) and base:
        text = f"{format_bytes(adapter)} and {format_bytes(base)} ({adapter / base:.2%})"
        sections += _render_bar("Adapter and its base model", text, adapter / base)
    elif adapter_bytes := atomic_files.measure_size(run.folder / ADAPTER):
        sections.append(f"<p>Adapter: {format_bytes(adapter_bytes)}</p>")
    sections += _render_time(run)
    memory = get_mapping(run.record, "memory")
    peaks = [
        f"{format_bytes(memory[key])} {label}"
        for key, label in (("peak_resident_bytes", "of the process"), ("peak_gpu_bytes", "of the GPU (tensors)"))
        if is_number(memory.get(key))
    ]
    if peaks:
        sections.append(f"<p><strong>Peak memory</strong> {', '.join(peaks)}</p>")
    if sections:
        yield f"<h2>Cost</h2>{''.join(sections)}"


def _render_bar(label: str, text: str, share: float) -> Iterator[str]:
    """A frame for the whole with the share filled in, to scale."""
    yield f'<div class="measure"><div><strong>{escape(label)}</strong> {escape(text)}</div>'
    yield f'<div class="bar" aria-hidden="true"><span class="s0" style="width:{min(1.0, share):.4%}"></span></div></div>'


def _render_time(run: RunFacts) -> Iterator[str]:
    total, timings = run.record.get("seconds"), get_mapping(run.record, "timings")
    if not is_number(total) or not total:
        return
    if get_mapping(run.record, "joint_training"):
        yield f"<p>{format_duration(total)} wall time, shared with the other cells trained jointly.</p>"
        return
    seconds = {label: timings[key] for key, label in PHASES.items() if is_number(timings.get(key))}
    seconds[REST] = max(0.0, total - sum(seconds.values()))
    # Phases may add up to more than the rounded total; the bar is divided by their sum, so that it is never too long.
    measured = sum(seconds.values())
    css = {label: f"s{number}" for number, label in enumerate([*PHASES.values(), REST])}
    bars = "".join(
        f'<span class="{css[label]}" style="width:{value / measured:.4%}"></span>' for label, value in seconds.items()
    )
    items = "".join(
        f'<li><span class="key {css[label]}"></span> {escape(label)} {format_duration(value)}</li>'
        for label, value in seconds.items()
    )
    yield f'<div class="measure"><div><strong>Time</strong> {format_duration(total)}</div><div class="bar" aria-hidden="true">{bars}</div><ul class="legend">{items}</ul></div>'
