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
from peftrun.console import short
from peftrun.errors import ProofError
from peftrun.io import atomic_files
from peftrun.planning import throughput
from peftrun.result import RunResult
from peftrun.results.replay import current_inputs, input_drift, outcome_diff, rerun
from peftrun.results.replay.input_drift import Input
from peftrun.results.replay.outcome_diff import DIFFERENT, Outcome
from peftrun.runs import execute

AGAIN = "again"
UNCOUNTED = ("grpo",)  # objectives that take several steps with a row
MOST = 4  # drifted inputs that a fault names


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Whether the run comes out as it did, and what has drifted; its second time lies in `again/`.

    Raises: ProofError: it comes out different; with `env=check`: something has drifted. The table is shown all the same.
        PeftrunError: the run cannot be done here and now.
    """
    action = spec.action
    assert isinstance(action, ReplayAction) and action.run is not None
    run = Path(action.run).expanduser()
    then, old = atomic_files.read_json(run / RECORD), rerun.values_of(run)
    wanted = rerun.spec(rerun.changed(copy.deepcopy(old), run_overrides.overrides(out_dir), spec))
    if action.env == "check":
        now = current_inputs.facts(wanted, then)
        compared = [
            *input_drift.of_file(run, then),
            *_steps(then, old),
            *input_drift.compared(then, now, old, asdict(wanted)),
        ]
        return _checked(out_dir, run, compared, then["status"] == "completed")
    console.say(f"running {short(run)} again, in {short(out_dir / AGAIN)}")
    try:
        execute.run(wanted, out_dir / AGAIN)
    except Exception:
        _say_drift(run, out_dir / AGAIN, then, old, asdict(wanted))
        raise
    now = atomic_files.read_json(out_dir / AGAIN / RECORD)
    found = outcome_diff.compare(run, out_dir / AGAIN, action.tolerance)
    compared = [*input_drift.of_file(run, then), *input_drift.compared(then, now, old, asdict(wanted))]
    return _judged(out_dir, run, found, compared, _notes(then, now))


def _steps(then: dict[str, Any], old: dict[str, Any]) -> list[Input]:
    """The steps that the run's config asks for, beside those that it took, where it took more of them."""
    done, rows = (then.get("training") or {}).get("steps"), (then.get("data") or {}).get("train_rows")
    if done is None or rows is None or (old["task"].get("objective") or {}).get("name") in UNCOUNTED:
        return []
    rows -= old["task"]["data"].get("validation_rows") or 0
    processes = old["device"]["processes"] * old["device"]["machines"]
    asked = throughput.steps(TrainerSpec(**old["trainer"]), rows, processes)
    return [Input(input_drift.CONFIG_KEYS, "steps, asked for and taken", asked, done)] if asked and done > asked else []


def _say_drift(run: Path, second: Path, then: dict[str, Any], old: dict[str, Any], wanted: dict[str, Any]) -> None:
    """What is not as it was, as far as a run that has failed can tell: it may be why."""
    if not (second / RECORD).exists():
        return
    now = atomic_files.read_json(second / RECORD)
    told = {key: then.get(key) for key in now}
    for label, text in input_drift.rows(
        input_drift.drifted([*input_drift.of_file(run, then), *input_drift.compared(told, now, old, wanted)])
    ):
        console.warn(f"{short(run)}: {label}: {text}")


def _checked(out_dir: Path, run: Path, compared: list[Input], completed: bool) -> RunResult:
    drifted = input_drift.drifted(compared)
    verdict = f"{len(drifted)} of {len(compared)} inputs have drifted" if drifted else "nothing has drifted"
    result = RunResult(
        out_dir,
        {"replay": {"run": str(run), "env": "check", **_told(compared)}},
        summary=[("run", short(run)), *input_drift.rows(compared, every=True), ("verdict", verdict)],
        next_commands=[f"peftrun action=replay run={shlex.quote(short(run))}"] if completed else [],
    )
    if drifted:
        _refuse(result, *(f"{run}: {label}: {text}" for label, text in input_drift.rows(compared)))
    return result


def _judged(out_dir: Path, run: Path, found: Outcome, compared: list[Input], notes: list[tuple[str, str]]) -> RunResult:
    drifted, silent = input_drift.drifted(compared), input_drift.unknown(compared)
    rows = [
        ("run", short(run)),
        ("again", short(out_dir / AGAIN)),
        ("verdict", found.verdict),
        *_figures(found),
        *notes,
        *(input_drift.rows(compared) or [("drifted", "nothing that the record tells of")]),
    ]
    rows += [(input_drift.UNKNOWN, ", ".join(silent))] if silent else []
    facts = {"run": str(run), **found.as_dict(), **_told(compared)}
    result = RunResult(out_dir, {"replay": facts}, summary=rows, next_commands=_next(found, run, out_dir / AGAIN))
    if found.verdict == DIFFERENT:
        _refuse(result, f"{run}: comes out different: {_how(found)}; {_blamed(drifted)}")
    return result


def _refuse(result: RunResult, *lines: str) -> None:
    console.closing_table(result)
    raise ProofError(*lines, facts=result.facts)


def _told(compared: list[Input]) -> dict[str, Any]:
    return {
        "drifted": [one.as_dict() for one in input_drift.drifted(compared)],
        "not_recorded": input_drift.unknown(compared),
    }


def _figures(found: Outcome) -> list[tuple[str, str]]:
    other = found.files["other"]
    rows = [("files", f"{found.files['same']} the same{', other: ' + ', '.join(other) if other else ''}")]
    if found.weights and "largest_difference" in found.weights:
        rows.append(("weights", f"{_distance(found)} (tolerance {found.tolerance:g})"))
    if found.metrics:
        rows += [(f"metric {name}", f"{_figure(one)} → {_figure(two)}") for name, (one, two) in found.metrics.items()]
    else:
        rows.append(("metrics", "the same"))
    return [*rows, *(("note", reason) for reason in found.reasons)]


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.8g}"


def _distance(found: Outcome) -> str:
    assert found.weights is not None
    return f"max |Δ| {found.weights['largest_difference']:.3g}, relative ‖Δ‖ {found.weights['relative_difference']:.3g}"


def _notes(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
    """What makes a run come out a little different from its lone run from the first step."""
    notes = []
    if then.get("resumed_from"):
        notes.append(("note", "the run went on from a checkpoint; it was run again from its first step"))
    if then.get("together"):
        cells = then["together"]["cells"]
        notes.append(("note", f"the run was a cell trained among {cells}, so that sums were taken in another order"))
    not_same = (now.get("computing") or {}).get("not_deterministic")
    return [*notes, *([("not deterministic here", ", ".join(not_same))] if not_same else [])]


def _how(found: Outcome) -> str:
    if found.weights and "largest_difference" in found.weights:
        return f"weights by {_distance(found)}"
    if found.reasons:
        return found.reasons[0]
    if found.metrics:
        name, (one, two) = next(iter(found.metrics.items()))
        return f"{name} {_figure(one)} → {_figure(two)}"
    return f"files {', '.join(found.files['other'][:MOST])}"


def _blamed(drifted: list[Input]) -> str:
    if not drifted:
        return "nothing that the record tells of has drifted"
    more = f" and {len(drifted) - MOST} more" if len(drifted) > MOST else ""
    return f"drifted: {'; '.join(f'{one.kind}: {one}' for one in drifted[:MOST])}{more}"


def _next(found: Outcome, run: Path, second: Path) -> list[str]:
    adapters = [folder / ADAPTER for folder in (run, second)]
    if found.verdict == outcome_diff.IDENTICAL or not all(folder.is_dir() for folder in adapters):
        return []
    return [f"peftrun action=diff {shlex.quote(f'adapter={{then: {short(run)}, again: {short(second)}}}')}"]
