"""Say where each value of a config comes from, or how two runs differ. No torch is imported."""

import json
from collections.abc import Sequence
from pathlib import Path

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.config.schema.actions import ExplainAction
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import explain_tables, explanation
from peftrun.config_tools.explanation import Difference, Explanation
from peftrun.errors import ConfigError
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """What is found, on standard output and in the record. Raises: ConfigError: there is nothing to explain, or no way there."""
    assert isinstance(spec.action, ExplainAction)
    found = _found(spec.action, out_dir)
    if spec.action.format == "json":
        console.show(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        lines = (
            explain_tables.of_difference(found) if isinstance(found, Difference) else explain_tables.of_config(found)
        )
        console.show("\n".join(lines))
    return RunResult(out_dir, {"explained": found.as_dict()})


def _found(action: ExplainAction, out_dir: Path) -> Explanation | Difference:
    typed = config_asked(run_overrides.overrides(out_dir), action.of)
    if action.run is None:
        return explanation.of_typed(typed, run_overrides.search_path(out_dir))
    _refuse_ignored(action.run, typed, action.of)
    run = Path(action.run).expanduser()
    if action.against is None:
        return explanation.of_run(run)
    return explanation.of_two(run, Path(action.against).expanduser())


def config_asked(typed: Sequence[str], of: str) -> list[str]:
    """What was typed for the config that is explained: all but what tells this action what to do."""
    own = [text for text in typed if text.lstrip("+~").partition("=")[0].partition(".")[0] not in ("action", "hydra")]
    return own if of == "train" else [f"action={of}", *own]


def _refuse_ignored(run: str, typed: Sequence[str], of: str) -> None:
    ignored = [text for text in typed if text != f"action={of}"]
    if ignored:
        raise ConfigError(
            *(f"{text}: run={run} explains that run's own config and would ignore this; omit it" for text in ignored)
        )
