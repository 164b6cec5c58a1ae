"""Find runs and adapters: task, base, method, rank, metric, size, date, status. Nothing heavy is imported."""

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
from peftrun.results.catalog.index import IndexedRun
from peftrun.results.catalog.query import SearchResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """What was found, on standard output. Raises: ConfigError: `where` cannot be read, or a column is not there."""
    action = spec.action
    assert isinstance(action, ListAction)
    as_json = action.format == "json"
    found = query.query_runs(action.roots, action.where, action.sort, action.limit, with_config=as_json)
    if as_json:
        console.print_result(json.dumps([table.serialize_run(one) for one in found.runs], indent=2, ensure_ascii=False))
    elif found.runs:
        console.print_result("\n".join(table.format_table(found, _collect_columns(action))))
    console.print_info(_format_count(found, action))
    result = RunResult(out_dir, {"listed": {"shown": len(found.runs), "matching": found.matching}})
    if found.runs and not as_json and sys.stdout.isatty():
        result.next_commands = _suggest_commands(found)
    return result


def _collect_columns(action: ListAction) -> list[str]:
    """Columns that were asked about: they are shown too."""
    names = (
        filter_parser.list_columns(filter_parser.parse_filter(action.where))
        if action.where and action.where.strip()
        else []
    )
    return list(dict.fromkeys([*names, *([action.sort.strip().removeprefix("-")] if action.sort else [])]))


def _format_count(found: SearchResult, action: ListAction) -> str:
    roots = ", ".join(action.roots)
    if found.matching == 0:
        hint = "" if action.where is None else f"; {found.total} runs lie there, of every action"
        return f"none found below {roots}{hint}"
    of = f" of {found.matching}" if len(found.runs) < found.matching else ""
    return f"{len(found.runs)}{of} found below {roots}"


def _suggest_commands(found: SearchResult) -> list[str]:
    """What to do with the first ones."""
    whole = [one for one in found.runs if one.facts.get("status") == "completed"]
    commands = [_build_reload_command(one) for one in whole if one.facts.get("adapter")][:1]
    if len(whole) > 1:
        pair = ",".join(str(one.facts["run"]) for one in whole[:2])
        commands.append(f"peftrun action=compare {shlex.quote(f'runs=[{pair}]')}")
    return [*commands, "peftrun action=browse"]


def _build_reload_command(run: IndexedRun) -> str:
    """Its adapter on the base, and with the task, that its run was typed with."""
    command = f"peftrun action=reload adapter={shlex.quote(run.facts['run'])}"
    folder = Path(run.folder)
    return run_overrides.add_shared_overrides(
        command, run_overrides.read_typed_overrides(folder), run_overrides.read_config_places(folder)
    )
