"""Resolve every option on the search path, and see that it fits its model. Without `build` nothing heavy is imported."""

from pathlib import Path

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.config.schema.actions import CheckAction
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import findings, lint
from peftrun.errors import CheckError
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """A table of what was found and is no fault, on standard output. Raises: CheckError: one line for each option at fault."""
    assert isinstance(spec.action, CheckAction)
    fits = None
    if spec.action.build:
        from peftrun.adapters import target_check

        fits = target_check.check_targets
    found = [lint.relativize_path(one) for one in lint.lint_search_path(run_overrides.read_search_path(out_dir), fits)]
    counts = lint.count_verdicts(found)
    facts = {"check": {"counts": counts, "findings": [one.as_dict() for one in found]}}
    faults = [one for one in found if one.verdict == findings.FAULT]  # told by the error, each once
    for line in findings.format_table([one for one in lint.select_shown(found) if one not in faults]):
        console.print_result(line)
    if faults:
        raise CheckError(*map(str, faults), facts=facts)
    built = "" if spec.action.build else ", no model built"
    summary = [
        ("options", f"{sum(counts.values())} resolve: {counts['fine']} fine, {counts['note']} with a note{built}")
    ]
    return RunResult(out_dir, facts, summary=summary)
