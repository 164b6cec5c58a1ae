"""Compare runs: the keys in which their configs differ, and their results. No torch is imported."""

import json
import shlex
import sys
from pathlib import Path

from peftrun import console
from peftrun.config.schema.actions import CompareAction
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError
from peftrun.result import RunResult
from peftrun.results.catalog import comparison, query


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Prints the comparison. Raises: ConfigError: fewer than two runs; `where` cannot be parsed."""
    action = spec.action
    assert isinstance(action, CompareAction)
    if action.runs is not None:
        runs = comparison.load_named_runs(action.runs)
    else:
        matches = query.query_runs(action.dirs, action.where, with_config=True).runs
        if len(matches) < 2:
            counted = "no run" if not matches else f"only one run, {matches[0].facts['run']}"
            raise ConfigError(
                f"action.where={action.where}: matches {counted}, and two are needed; type runs=[RUN, RUN2], or a wider condition"
            )
        if len(matches) > comparison.MAX_RUNS:
            raise ConfigError(
                f"action.where={action.where}: matches {len(matches)} runs, and at most {comparison.MAX_RUNS} can be compared; "
                "type a narrower condition, or action=list"
            )
        runs = comparison.check_readable(matches, "action.where")
    compared = comparison.compare_runs(runs)
    if action.format == "json":
        console.print_result(json.dumps(compared.as_dict(), indent=2, ensure_ascii=False))
    else:
        console.print_result("\n".join(comparison.format_comparison(compared)))
    result = RunResult(out_dir, {"compared": [run.folder for run in runs]})
    if action.format == "table" and sys.stdout.isatty():
        first, second = (str(run.facts["run"]) for run in runs[:2])
        result.next_commands = [f"peftrun action=explain run={shlex.quote(first)} compare_with={shlex.quote(second)}"]
        if all(run.facts.get("adapter") for run in runs[:2]):
            pair = f"adapter={{a: {first}, b: {second}}}"
            result.next_commands.append(f"peftrun action=diff {shlex.quote(pair)}")
    return result
