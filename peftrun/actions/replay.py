"""Run a recorded run again from its own config and compare the results; or only report which inputs have changed since."""

import copy
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import records, run_overrides, source_run
from peftrun.artifacts.run_layout import ADAPTER, RECORD
from peftrun.config.schema.actions import ReplayAction
from peftrun.config.schema.run import RunSpec, TrainerSpec
from peftrun.console import shorten_path
from peftrun.errors import ProofError
from peftrun.planning import throughput
from peftrun.result import RunResult
from peftrun.results.replay import current_inputs, input_drift, outcome_diff, rerun
from peftrun.results.replay.input_drift import Input
from peftrun.results.replay.outcome_diff import DIFFERENT, OutcomeDiff
from peftrun.runs import execute

REPLAY_DIR = "again"
MULTI_STEP_OBJECTIVES = ("grpo",)  # several optimizer steps per row, so steps cannot be computed from the row count
MAX_NAMED_INPUTS = 4  # drifted inputs that an error names


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Compares the run with a second one, written to `again/`, and lists the inputs that have drifted.

    Raises: ProofError: the results differ; with `check_only=true`: an input has drifted. The summary table is printed first.
        PeftrunError: the run cannot be repeated on this machine.
    """
    action = spec.action
    assert isinstance(action, ReplayAction) and action.run is not None
    run_dir = Path(action.run).expanduser()
    recorded, recorded_values = records.read_record(run_dir), rerun.load_run_values(run_dir)
    rerun_spec = rerun.build_rerun_spec(
        rerun.apply_overrides(copy.deepcopy(recorded_values), run_overrides.read_overrides(out_dir), spec)
    )
    if action.check_only:
        current = current_inputs.collect_facts(rerun_spec, recorded)
        inputs = [
            *input_drift.compare_config_file(run_dir, recorded),
            *_compare_steps(recorded, recorded_values),
            *input_drift.compare_inputs(recorded, current, recorded_values, asdict(rerun_spec)),
        ]
        return _build_check_result(out_dir, run_dir, inputs, recorded["status"] == "completed")
    source_run.check_function_files(recorded, rerun_spec, run_dir)
    console.print_info(f"running {shorten_path(run_dir)} again, in {shorten_path(out_dir / REPLAY_DIR)}")
    try:
        execute.execute_run(rerun_spec, out_dir / REPLAY_DIR)
    except Exception:
        _warn_drift(run_dir, out_dir / REPLAY_DIR, recorded, recorded_values, asdict(rerun_spec))
        raise
    current = records.read_record(out_dir / REPLAY_DIR)
    outcome = outcome_diff.compare_outcomes(run_dir, out_dir / REPLAY_DIR, action.tolerance)
    inputs = [
        *input_drift.compare_config_file(run_dir, recorded),
        *input_drift.compare_inputs(recorded, current, recorded_values, asdict(rerun_spec)),
    ]
    return _build_replay_result(out_dir, run_dir, outcome, inputs, _build_notes(recorded, current))


def _compare_steps(recorded: dict[str, Any], recorded_values: dict[str, Any]) -> list[Input]:
    """Planned and taken optimizer steps, where the run took more steps than its config plans (else empty)."""
    done, rows = (recorded.get("training") or {}).get("steps"), (recorded.get("data") or {}).get("train_rows")
    if (
        done is None
        or rows is None
        or (recorded_values["task"].get("objective") or {}).get("name") in MULTI_STEP_OBJECTIVES
    ):
        return []
    rows -= recorded_values["task"]["data"].get("num_validation_rows") or 0
    processes = recorded_values["device"]["num_processes"] * recorded_values["device"]["num_machines"]
    planned = throughput.count_optimizer_steps(TrainerSpec(**recorded_values["trainer"]), rows, processes)
    return (
        [Input(input_drift.CONFIG_KEYS, "steps, planned and taken", planned, done)]
        if planned and done > planned
        else []
    )


def _warn_drift(
    run_dir: Path,
    rerun_dir: Path,
    recorded: dict[str, Any],
    recorded_values: dict[str, Any],
    rerun_values: dict[str, Any],
) -> None:
    """Warns of changed inputs after a failed rerun: one of them may be the cause."""
    if not (rerun_dir / RECORD).exists():
        return
    current = records.read_record(rerun_dir)
    # A failed run's record lacks what comes after the failure; only the keys that both records have are compared.
    comparable = {key: recorded.get(key) for key in current}
    for label, text in input_drift.format_rows(
        input_drift.select_drifted(
            [
                *input_drift.compare_config_file(run_dir, recorded),
                *input_drift.compare_inputs(comparable, current, recorded_values, rerun_values),
            ]
        )
    ):
        console.print_warning(f"{shorten_path(run_dir)}: {label}: {text}")


def _build_check_result(out_dir: Path, run_dir: Path, inputs: list[Input], completed: bool) -> RunResult:
    drifted = input_drift.select_drifted(inputs)
    verdict = f"{len(drifted)} of {len(inputs)} inputs have drifted" if drifted else "nothing has drifted"
    result = RunResult(
        out_dir,
        {"replay": {"run": str(run_dir), "env": "check", **_build_drift_facts(inputs)}},
        summary=[("run", shorten_path(run_dir)), *input_drift.format_rows(inputs, every=True), ("verdict", verdict)],
        next_commands=[f"peftrun action=replay run={shlex.quote(shorten_path(run_dir))}"] if completed else [],
    )
    if drifted:
        _raise_proof_error(result, *(f"{run_dir}: {label}: {text}" for label, text in input_drift.format_rows(inputs)))
    return result


def _build_replay_result(
    out_dir: Path, run_dir: Path, outcome: OutcomeDiff, inputs: list[Input], notes: list[tuple[str, str]]
) -> RunResult:
    drifted, unrecorded = input_drift.select_drifted(inputs), input_drift.list_unrecorded(inputs)
    rows = [
        ("run", shorten_path(run_dir)),
        ("again", shorten_path(out_dir / REPLAY_DIR)),
        ("verdict", outcome.verdict),
        *_format_outcome(outcome),
        *notes,
        *(input_drift.format_rows(inputs) or [("drifted", "nothing that was recorded")]),
    ]
    rows += [(input_drift.UNKNOWN, ", ".join(unrecorded))] if unrecorded else []
    facts = {"run": str(run_dir), **outcome.as_dict(), **_build_drift_facts(inputs)}
    result = RunResult(out_dir, {"replay": facts}, summary=rows)
    folders = (run_dir, out_dir / REPLAY_DIR)
    if outcome.verdict != outcome_diff.IDENTICAL and all((folder / ADAPTER).is_dir() for folder in folders):
        then, again = map(shorten_path, folders)
        result.next_commands = [f"peftrun action=diff {shlex.quote(f'adapter={{then: {then}, again: {again}}}')}"]
    if outcome.verdict == DIFFERENT:
        drift = "nothing that was recorded has drifted"
        if drifted:
            more = f" and {len(drifted) - MAX_NAMED_INPUTS} more" if len(drifted) > MAX_NAMED_INPUTS else ""
            drift = f"drifted: {'; '.join(f'{item.kind}: {item}' for item in drifted[:MAX_NAMED_INPUTS])}{more}"
        _raise_proof_error(result, f"{run_dir}: the result differs: {_describe_difference(outcome)}; {drift}")
    return result


def _raise_proof_error(result: RunResult, *lines: str) -> None:
    # A raised error suppresses the usual summary table, so it is printed here.
    console.print_summary_table(result)
    raise ProofError(*lines, facts=result.facts)


def _build_drift_facts(inputs: list[Input]) -> dict[str, Any]:
    return {
        "drifted": [item.as_dict() for item in input_drift.select_drifted(inputs)],
        "not_recorded": input_drift.list_unrecorded(inputs),
    }


def _format_outcome(outcome: OutcomeDiff) -> list[tuple[str, str]]:
    changed_files = outcome.files["other"]
    rows = [
        ("files", f"{outcome.files['same']} the same{', other: ' + ', '.join(changed_files) if changed_files else ''}")
    ]
    if outcome.weights and "largest_difference" in outcome.weights:
        rows.append(("weights", f"{_format_distance(outcome)} (tolerance {outcome.tolerance:g})"))
    if outcome.metrics:
        rows += [
            (f"metric {name}", f"{_format_number(before)} → {_format_number(after)}")
            for name, (before, after) in outcome.metrics.items()
        ]
    else:
        rows.append(("metrics", "the same"))
    return [*rows, *(("note", reason) for reason in outcome.reasons)]


def _format_number(value: float | None) -> str:
    return "none" if value is None else f"{value:.8g}"


def _format_distance(outcome: OutcomeDiff) -> str:
    assert outcome.weights is not None
    return f"max |Δ| {outcome.weights['largest_difference']:.3g}, relative ‖Δ‖ {outcome.weights['relative_difference']:.3g}"


def _build_notes(recorded: dict[str, Any], current: dict[str, Any]) -> list[tuple[str, str]]:
    """Reasons why a rerun may differ slightly: resumed, trained jointly, or non-deterministic operations."""
    notes = []
    if recorded.get("resumed_from"):
        notes.append(("note", "the run was resumed from a checkpoint; the rerun starts from the first step"))
    if recorded.get("joint_training"):
        cells = recorded["joint_training"]["cells"]
        # Batched matmuls over the rows of several cells reduce in another order than those of one cell.
        notes.append(("note", f"the run was one of {cells} cells trained jointly, so sums were taken in another order"))
    operations = (current.get("numerics") or {}).get("not_deterministic")
    return [*notes, *([("not deterministic here", ", ".join(operations))] if operations else [])]


def _describe_difference(outcome: OutcomeDiff) -> str:
    if outcome.weights and "largest_difference" in outcome.weights:
        return f"weights by {_format_distance(outcome)}"
    if outcome.reasons:
        return outcome.reasons[0]
    if outcome.metrics:
        name, (before, after) = next(iter(outcome.metrics.items()))
        return f"{name} {_format_number(before)} → {_format_number(after)}"
    return f"files {', '.join(outcome.files['other'][:MAX_NAMED_INPUTS])}"
