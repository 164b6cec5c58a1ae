"""List runs and adapters: task, base model, method, rank, metric, size, date, status. No torch is imported."""

import json
import shlex
import sys
from pathlib import Path

from peftrun import console
from peftrun.artifacts import filter_parser, run_overrides
from peftrun.config.schema.actions import ListAction
from peftrun.config.schema.run import RunSpec
from peftrun.result import RunResult
from peftrun.results.catalog import query, table
from peftrun.results.catalog.query import SearchResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Prints the matching runs. Raises: ConfigError: `where` cannot be parsed, or a column does not exist."""
    action = spec.action
    assert isinstance(action, ListAction)
    as_json = action.format == "json"
    matches = query.query_runs(action.dirs, action.where, action.sort, action.limit, with_config=as_json)
    if as_json:
        console.print_result(
            json.dumps([table.serialize_run(run) for run in matches.runs], indent=2, ensure_ascii=False)
        )
    elif matches.runs:
        # Columns that `where` or `sort` name are shown in addition to the usual ones.
        columns = []
        if action.where and action.where.strip():
            columns = filter_parser.list_columns(filter_parser.parse_filter(action.where))
        if action.sort:
            columns = [*columns, action.sort.strip().removeprefix("-")]
        console.print_result("\n".join(table.format_table(matches, list(dict.fromkeys(columns)))))
    of = f" of {matches.matching}" if len(matches.runs) < matches.matching else ""
    count = f"{len(matches.runs)}{of}" if matches.matching else "none"
    is_filtered = not matches.matching and action.where is not None
    hint = f"; {matches.total} runs of all actions are stored there" if is_filtered else ""
    console.print_info(f"{count} found below {', '.join(action.dirs)}{hint}")
    result = RunResult(out_dir, {"listed": {"shown": len(matches.runs), "matching": matches.matching}})
    if matches.runs and not as_json and sys.stdout.isatty():
        result.next_commands = _suggest_commands(matches)
    return result


def _suggest_commands(matches: SearchResult) -> list[str]:
    """Commands for the first completed runs."""
    completed = [run for run in matches.runs if run.facts.get("status") == "completed"]
    commands = []
    trained = next((run for run in completed if run.facts.get("adapter")), None)
    if trained:
        # With the model and task overrides that the run was started with.
        command, folder = f"peftrun action=reload adapter={shlex.quote(trained.facts['run'])}", Path(trained.folder)
        typed, places = run_overrides.read_typed_overrides(folder), run_overrides.read_config_places(folder)
        commands.append(run_overrides.add_shared_overrides(command, typed, places))
    if len(completed) > 1:
        pair = ",".join(str(run.facts["run"]) for run in completed[:2])
        commands.append(f"peftrun action=compare {shlex.quote(f'runs=[{pair}]')}")
    return [*commands, "peftrun action=browse"]
