"""What a run took: share of parameters, size of the adapter, time and memory, each as a bar to scale. Light."""

from collections.abc import Iterator
from html import escape

from peftrun.artifacts.run_layout import ADAPTER
from peftrun.formatting import format_duration, format_number, format_size, is_number
from peftrun.io import atomic_files
from peftrun.results.report.run_facts import RunFacts, get_mapping

PARTS = {  # keys of the record's timings, in the order of the clock
    "evaluate_before_seconds": "measuring before",
    "samples_before_seconds": "samples before",
    "train_seconds": "training",
    "evaluate_after_seconds": "measuring after",
    "samples_after_seconds": "samples after",
}
REST = "all else: imports, base, rows, saving"


def render_cost(run: RunFacts) -> Iterator[str]:
    """Bars and what they say in words; nothing where the record knows nothing of it."""
    parts = [*_render_parameters(run), *_render_size(run), *_render_time(run), *_render_memory(run)]
    if parts:
        yield f"<h2>What it takes</h2>{''.join(parts)}"


def _render_parameters(run: RunFacts) -> Iterator[str]:
    trained, every = run.record.get("trainable_parameters"), run.record.get("parameters")
    if is_number(trained) and is_number(every) and every:
        words = f"{format_number(trained)} of {format_number(every)} ({trained / every:.2%})"
        yield from _render_bar("Trained parameters", words, trained / every)


def _render_size(run: RunFacts) -> Iterator[str]:
    known = get_mapping(run.record, "size")
    adapter, base = known.get("adapter_bytes"), known.get("base_bytes")
    if is_number(adapter) and is_number(base) and base:
        yield from _render_bar(
            "Adapter against its base",
            f"{format_size(adapter)} beside {format_size(base)} ({adapter / base:.2%})",
            adapter / base,
        )
    elif here := atomic_files.measure_size(run.folder / ADAPTER):
        yield f"<p>Adapter: {format_size(here)}</p>"


def _render_bar(label: str, words: str, share: float) -> Iterator[str]:
    """The whole as a frame, the part filled in, to scale: at least a hair wide."""
    yield f'<div class="measure"><div><strong>{escape(label)}</strong> {escape(words)}</div>'
    yield f'<div class="bar" aria-hidden="true"><span class="s0" style="width:{min(1.0, share):.4%}"></span></div></div>'


def _render_time(run: RunFacts) -> Iterator[str]:
    whole, known = run.record.get("seconds"), get_mapping(run.record, "timings")
    if not is_number(whole) or not whole:
        return
    spent = {words: known[key] for key, words in PARTS.items() if is_number(known.get(key))}
    if get_mapping(run.record, "together"):
        yield f"<p>{format_duration(whole)} by the clock; trained together with other cells, which shared it.</p>"
        return
    spent[REST] = max(0.0, whole - sum(spent.values()))
    total = sum(spent.values())
    places = {words: place for place, words in enumerate([*PARTS.values(), REST])}
    bars = "".join(
        f'<span class="s{places[words]}" style="width:{seconds / total:.4%}"></span>'
        for words, seconds in spent.items()
    )
    items = "".join(
        f'<li><span class="key s{places[words]}"></span> {escape(words)} {format_duration(seconds)}</li>'
        for words, seconds in spent.items()
    )
    yield f'<div class="measure"><div><strong>Time</strong> {format_duration(whole)}</div><div class="bar" aria-hidden="true">{bars}</div><ul class="legend">{items}</ul></div>'


def _render_memory(run: RunFacts) -> Iterator[str]:
    known = get_mapping(run.record, "memory")
    told = [
        f"{format_size(known[key])} {words}"
        for key, words in (("peak_resident_bytes", "of the process"), ("peak_gpu_bytes", "of the GPU (tensors)"))
        if is_number(known.get(key))
    ]
    if told:
        yield f"<p><strong>Memory at its height</strong> {', '.join(told)}</p>"
