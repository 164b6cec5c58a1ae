"""Run a record again from its own config and compare what comes out; or only say what has drifted since."""

import copy
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.artifacts.run_layout import ADAPTER, RECORD
from peftrun.config.schema.actions import ReplayAction
from peftrun.config.schema.run import RunSpec, TrainerSpec
from peftrun.console import shorten_path
from peftrun.errors import ProofError
from peftrun.io import atomic_files
from peftrun.planning import throughput
from peftrun.result import RunResult
from peftrun.results.replay import current_inputs, input_drift, outcome_diff, rerun
from peftrun.results.replay.input_drift import Input
from peftrun.results.replay.outcome_diff import DIFFERENT, OutcomeDiff
from peftrun.runs import execute

REPLAY_DIR = "again"
MULTI_STEP_OBJECTIVES = ("grpo",)  # objectives that take several steps with a row
MAX_NAMED_INPUTS = 4  # drifted inputs that a fault names


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Whether the run comes out as it did, and what has drifted; its second time lies in `again/`.

    Raises: ProofError: it comes out different; with `env=check`: something has drifted. The table is shown all the same.
        PeftrunError: the run cannot be done here and now.
    """
    action = spec.action
    assert isinstance(action, ReplayAction) and action.run is not None
    run = Path(action.run).expanduser()
    then, old = atomic_files.read_json(run / RECORD), rerun.load_run_values(run)
    wanted = rerun.build_rerun_spec(
        rerun.apply_overrides(copy.deepcopy(old), run_overrides.read_overrides(out_dir), spec)
    )
    if action.env == "check":
        now = current_inputs.collect_facts(wanted, then)
        compared = [
            *input_drift.compare_config_file(run, then),
            *_compare_steps(then, old),
            *input_drift.compare_inputs(then, now, old, asdict(wanted)),
        ]
        return _build_check_result(out_dir, run, compared, then["status"] == "completed")
    console.print_info(f"running {shorten_path(run)} again, in {shorten_path(out_dir / REPLAY_DIR)}")
    try:
        execute.execute_run(wanted, out_dir / REPLAY_DIR)
    except Exception:
        _warn_drift(run, out_dir / REPLAY_DIR, then, old, asdict(wanted))
        raise
    now = atomic_files.read_json(out_dir / REPLAY_DIR / RECORD)
    found = outcome_diff.compare_outcomes(run, out_dir / REPLAY_DIR, action.tolerance)
    compared = [
        *input_drift.compare_config_file(run, then),
        *input_drift.compare_inputs(then, now, old, asdict(wanted)),
    ]
    return _build_replay_result(out_dir, run, found, compared, _build_notes(then, now))


def _compare_steps(then: dict[str, Any], old: dict[str, Any]) -> list[Input]:
    """The steps that the run's config asks for, beside those that it took, where it took more of them."""
    done, rows = (then.get("training") or {}).get("steps"), (then.get("data") or {}).get("train_rows")
    if done is None or rows is None or (old["task"].get("objective") or {}).get("name") in MULTI_STEP_OBJECTIVES:
        return []
    rows -= old["task"]["data"].get("validation_rows") or 0
    processes = old["device"]["processes"] * old["device"]["machines"]
    asked = throughput.count_optimizer_steps(TrainerSpec(**old["trainer"]), rows, processes)
    return [Input(input_drift.CONFIG_KEYS, "steps, asked for and taken", asked, done)] if asked and done > asked else []


def _warn_drift(run: Path, second: Path, then: dict[str, Any], old: dict[str, Any], wanted: dict[str, Any]) -> None:
    """What is not as it was, as far as a run that has failed can tell: it may be why."""
    if not (second / RECORD).exists():
        return
    now = atomic_files.read_json(second / RECORD)
    told = {key: then.get(key) for key in now}
    for label, text in input_drift.format_rows(
        input_drift.select_drifted(
            [*input_drift.compare_config_file(run, then), *input_drift.compare_inputs(told, now, old, wanted)]
        )
    ):
        console.print_warning(f"{shorten_path(run)}: {label}: {text}")


def _build_check_result(out_dir: Path, run: Path, compared: list[Input], completed: bool) -> RunResult:
    drifted = input_drift.select_drifted(compared)
    verdict = f"{len(drifted)} of {len(compared)} inputs have drifted" if drifted else "nothing has drifted"
    result = RunResult(
        out_dir,
        {"replay": {"run": str(run), "env": "check", **_build_drift_facts(compared)}},
        summary=[("run", shorten_path(run)), *input_drift.format_rows(compared, every=True), ("verdict", verdict)],
        next_commands=[f"peftrun action=replay run={shlex.quote(shorten_path(run))}"] if completed else [],
    )
    if drifted:
        _raise_proof_error(result, *(f"{run}: {label}: {text}" for label, text in input_drift.format_rows(compared)))
    return result


def _build_replay_result(
    out_dir: Path, run: Path, found: OutcomeDiff, compared: list[Input], notes: list[tuple[str, str]]
) -> RunResult:
    drifted, silent = input_drift.select_drifted(compared), input_drift.list_unrecorded(compared)
    rows = [
        ("run", shorten_path(run)),
        ("again", shorten_path(out_dir / REPLAY_DIR)),
        ("verdict", found.verdict),
        *_format_outcome(found),
        *notes,
        *(input_drift.format_rows(compared) or [("drifted", "nothing that the record tells of")]),
    ]
    rows += [(input_drift.UNKNOWN, ", ".join(silent))] if silent else []
    facts = {"run": str(run), **found.as_dict(), **_build_drift_facts(compared)}
    result = RunResult(
        out_dir, {"replay": facts}, summary=rows, next_commands=_suggest_commands(found, run, out_dir / REPLAY_DIR)
    )
    if found.verdict == DIFFERENT:
        _raise_proof_error(
            result, f"{run}: comes out different: {_describe_difference(found)}; {_describe_drift(drifted)}"
        )
    return result


def _raise_proof_error(result: RunResult, *lines: str) -> None:
    console.print_summary_table(result)
    raise ProofError(*lines, facts=result.facts)


def _build_drift_facts(compared: list[Input]) -> dict[str, Any]:
    return {
        "drifted": [one.as_dict() for one in input_drift.select_drifted(compared)],
        "not_recorded": input_drift.list_unrecorded(compared),
    }


def _format_outcome(found: OutcomeDiff) -> list[tuple[str, str]]:
    other = found.files["other"]
    rows = [("files", f"{found.files['same']} the same{', other: ' + ', '.join(other) if other else ''}")]
    if found.weights and "largest_difference" in found.weights:
        rows.append(("weights", f"{_format_distance(found)} (tolerance {found.tolerance:g})"))
    if found.metrics:
        rows += [
            (f"metric {name}", f"{_format_number(one)} → {_format_number(two)}")
            for name, (one, two) in found.metrics.items()
        ]
    else:
        rows.append(("metrics", "the same"))
    return [*rows, *(("note", reason) for reason in found.reasons)]


def _format_number(value: float | None) -> str:
    return "none" if value is None else f"{value:.8g}"


def _format_distance(found: OutcomeDiff) -> str:
    assert found.weights is not None
    return f"max |Δ| {found.weights['largest_difference']:.3g}, relative ‖Δ‖ {found.weights['relative_difference']:.3g}"


def _build_notes(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
    """What makes a run come out a little different from its lone run from the first step."""
    notes = []
    if then.get("resumed_from"):
        notes.append(("note", "the run went on from a checkpoint; it was run again from its first step"))
    if then.get("together"):
        cells = then["together"]["cells"]
        notes.append(("note", f"the run was a cell trained among {cells}, so that sums were taken in another order"))
    not_same = (now.get("computing") or {}).get("not_deterministic")
    return [*notes, *([("not deterministic here", ", ".join(not_same))] if not_same else [])]


def _describe_difference(found: OutcomeDiff) -> str:
    if found.weights and "largest_difference" in found.weights:
        return f"weights by {_format_distance(found)}"
    if found.reasons:
        return found.reasons[0]
    if found.metrics:
        name, (one, two) = next(iter(found.metrics.items()))
        return f"{name} {_format_number(one)} → {_format_number(two)}"
    return f"files {', '.join(found.files['other'][:MAX_NAMED_INPUTS])}"


def _describe_drift(drifted: list[Input]) -> str:
    if not drifted:
        return "nothing that the record tells of has drifted"
    more = f" and {len(drifted) - MAX_NAMED_INPUTS} more" if len(drifted) > MAX_NAMED_INPUTS else ""
    return f"drifted: {'; '.join(f'{one.kind}: {one}' for one in drifted[:MAX_NAMED_INPUTS])}{more}"


def _suggest_commands(found: OutcomeDiff, run: Path, second: Path) -> list[str]:
    adapters = [folder / ADAPTER for folder in (run, second)]
    if found.verdict == outcome_diff.IDENTICAL or not all(folder.is_dir() for folder in adapters):
        return []
    return [
        f"peftrun action=diff {shlex.quote(f'adapter={{then: {shorten_path(run)}, again: {shorten_path(second)}}}')}"
    ]
