"""What a training run leaves in its record, and on the terminal."""

import dataclasses
from typing import Any

from peftrun.artifacts import adapter_folder, adapter_rules, adapter_settings, lineage
from peftrun.artifacts.run_layout import ADAPTER, RECORD
from peftrun.console import shorten_path
from peftrun.formatting import format_bytes
from peftrun.io import atomic_files
from peftrun.result import RunResult
from peftrun.system import memory
from peftrun.training import epochs, lengths, padding, sample_generations
from peftrun.training import session as session_module
from peftrun.training.fit import FitResult
from peftrun.training.session import TrainingSession


def build_result(
    session: TrainingSession,
    fitted: FitResult,
    before: dict[str, float],
    after: dict[str, float],
    counts: tuple[int, int],
) -> RunResult:
    """Facts, metrics and summary of the run. Args: counts: trainable parameters, and all parameters."""
    longest = lengths.find_longest(session.rows, session.spec)
    trainable, total = counts
    facts = {
        "base": session.base.describe(),
        "device": session.place.note,
        "data": session.rows.describe(),
        "input_digests": session.digests,
        **(origin := session_module.describe_parent(session)),
        "resumed_from": str(session.checkpoint) if session.checkpoint else None,
        "training": fitted.as_dict(),
        "timings": session.timings,
        "memory": memory.measure_peak_memory(),
        "lengths": dataclasses.asdict(longest) if longest else None,
        **_collect_details(session),
        "trainable_parameters": trainable,
        "parameters": total,
    }
    num_rows = len(session.rows.train) - (session.spec.task.data.num_validation_rows or 0)
    coverage = epochs.describe_coverage(session.spec, num_rows, fitted.steps)
    summary = [
        ("base", f"{session.base.name} ({session.base.fingerprint.short()})"),
        *lineage.summarize(origin, is_stacked=getattr(session.spec.action, "stack", False)),
        ("trainable", f"{trainable:,} of {total:,} parameters ({trainable / total:.2%})"),
        ("training", fitted.describe()),
        *([("learned", coverage)] if coverage else []),
        *fitted.describe_best(),
        *([] if session.spec.task.objective else padding.describe_padding(fitted.padding_share, session.spec.trainer)),
        *((name, f"{before[name]:.4f} → {value:.4f}" if before else f"{value:.4f}") for name, value in after.items()),
        ("record", shorten_path(session.out_dir / RECORD)),
    ]
    metrics = {"before": before, "after": after}
    return RunResult(session.out_dir, facts, metrics, summary=summary, objective=after.get("loss"))


def _collect_details(session: TrainingSession) -> dict[str, Any]:
    """What is recorded beside the metrics: a task's own details, and the generated samples."""
    names = dict.fromkeys(name for details in session.details.values() for name in details)
    facts: dict[str, Any] = {name: {when: details[name] for when, details in session.details.items()} for name in names}
    if session.generations:
        samples = session_module.choose_sample_rows(session)
        max_new_tokens = sample_generations.compute_max_new_tokens(samples, session.spec.task)
        facts["samples"] = sample_generations.format_samples(
            samples, session.base.tokenizer, session.generations, max_new_tokens
        )
    return facts


def add_artifacts(session: TrainingSession, result: RunResult) -> RunResult:
    """The same result with the saved adapter, its size, and commands to type next."""
    target, run_folder = session.out_dir / ADAPTER, shorten_path(session.out_dir)
    size, base_size = atomic_files.measure_size(target), session.base.size()  # bytes
    result.artifacts, saved = [target], adapter_folder.resolve_adapter(str(target))
    result.facts["size"] = {"adapter_bytes": size, "base_bytes": base_size}
    result.summary.append(
        (
            "adapter",
            f"{format_bytes(size)}, {size / base_size:.2%} of the base's {format_bytes(base_size)}: {shorten_path(target)}",
        )
    )
    result.next_commands = [
        f"peftrun action=reload adapter={run_folder}",
        *([] if session.base.head else [f"peftrun action=generate adapter={run_folder} 'action.prompt=\"…\"'"]),
        *([] if adapter_rules.why_not_merged(saved.config) else [f"peftrun action=merge adapter={run_folder}"]),
        *([] if adapter_settings.why_not_continued(saved) else [f"peftrun action=train adapter={run_folder}"]),
    ]
    return result
