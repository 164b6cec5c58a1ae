"""Compose every option on the search path and check that it fits its model. With `action.build=false` no torch is imported."""

from pathlib import Path

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.config.schema.actions import CheckAction
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import findings, lint
from peftrun.errors import CheckError
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Prints a table of the notes. Raises: CheckError: one line for each fault found."""
    assert isinstance(spec.action, CheckAction)
    check_fit = None
    if spec.action.build:
        from peftrun.adapters import target_check

        check_fit = target_check.check_targets
    search_path = run_overrides.read_search_path(out_dir)
    results = [lint.relativize_path(result) for result in lint.lint_search_path(search_path, check_fit)]
    counts = lint.count_verdicts(results)
    facts = {"check": {"counts": counts, "findings": [result.as_dict() for result in results]}}
    faulty = [result for result in results if result.verdict == findings.FAULT]
    # Faults are left out of the table: CheckError prints each of them once.
    for line in findings.format_table([result for result in lint.select_shown(results) if result not in faulty]):
        console.print_result(line)
    if faulty:
        raise CheckError(*map(str, faulty), facts=facts)
    built = "" if spec.action.build else ", no model built"
    summary = [
        ("options", f"{sum(counts.values())} compose: {counts['fine']} fine, {counts['note']} with a note{built}")
    ]
    return RunResult(out_dir, facts, summary=summary)
