"""Set runs side by side: what differs between their configs, and what came out. Nothing heavy is imported."""

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
from peftrun.results.catalog.index import IndexedRun


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """What was found, on standard output. Raises: ConfigError: fewer than two runs; `where` cannot be read."""
    action = spec.action
    assert isinstance(action, CompareAction)
    runs = _select_runs(action)
    found = comparison.compare_runs(runs)
    if action.format == "json":
        console.print_result(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        console.print_result("\n".join(comparison.format_comparison(found)))
    result = RunResult(out_dir, {"compared": [one.folder for one in runs]})
    if action.format == "table" and sys.stdout.isatty():
        result.next_commands = _suggest_commands(runs)
    return result


def _select_runs(action: CompareAction) -> list[IndexedRun]:
    if action.runs is not None:
        return comparison.load_named_runs(action.runs)
    found = query.query_runs(action.roots, action.where, with_config=True).runs
    if len(found) < 2:
        what = "no run" if not found else f"one run alone, {found[0].facts['run']}"
        raise ConfigError(
            f"action.where={action.where}: finds {what}, and two are needed; type runs=[RUN, RUN2], or ask for more"
        )
    if len(found) > comparison.MAX_RUNS:
        raise ConfigError(
            f"action.where={action.where}: finds {len(found)} runs, and at most {comparison.MAX_RUNS} stand side by side; "
            "ask for fewer, or type action=list"
        )
    return comparison.check_readable(found, "action.where")


def _suggest_commands(runs: list[IndexedRun]) -> list[str]:
    one, other = (shlex.quote(str(run.facts["run"])) for run in runs[:2])
    commands = [f"peftrun action=explain run={one} against={other}"]
    if all(run.facts.get("adapter") for run in runs[:2]):
        pair = "{" + f"a: {runs[0].facts['run']}, b: {runs[1].facts['run']}" + "}"
        commands.append(f"peftrun action=diff {shlex.quote(f'adapter={pair}')}")
    return commands
