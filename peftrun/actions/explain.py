"""Say where each value of a config comes from, or how two runs differ. No torch is imported."""

import json
from collections.abc import Sequence
from pathlib import Path

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.config.schema.actions import ExplainAction
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import explain_tables, explanation
from peftrun.config_tools.explanation import ConfigDifference, ConfigExplanation
from peftrun.errors import ConfigError
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """What is found, on standard output and in the record. Raises: ConfigError: there is nothing to explain, or no way there."""
    assert isinstance(spec.action, ExplainAction)
    found = _explain_config(spec.action, out_dir)
    if spec.action.format == "json":
        console.print_result(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        lines = (
            explain_tables.format_difference(found)
            if isinstance(found, ConfigDifference)
            else explain_tables.format_explanation(found)
        )
        console.print_result("\n".join(lines))
    return RunResult(out_dir, {"explained": found.as_dict()})


def _explain_config(action: ExplainAction, out_dir: Path) -> ConfigExplanation | ConfigDifference:
    typed = select_config_overrides(run_overrides.read_overrides(out_dir), action.of)
    if action.run is None:
        return explanation.explain_overrides(typed, run_overrides.read_search_path(out_dir))
    _check_ignored(action.run, typed, action.of)
    run = Path(action.run).expanduser()
    if action.against is None:
        return explanation.explain_run(run)
    return explanation.explain_difference(run, Path(action.against).expanduser())


def select_config_overrides(typed: Sequence[str], of: str) -> list[str]:
    """What was typed for the config that is explained: all but what tells this action what to do."""
    own = [text for text in typed if text.lstrip("+~").partition("=")[0].partition(".")[0] not in ("action", "hydra")]
    return own if of == "train" else [f"action={of}", *own]


def _check_ignored(run: str, typed: Sequence[str], of: str) -> None:
    ignored = [text for text in typed if text != f"action={of}"]
    if ignored:
        raise ConfigError(
            *(f"{text}: run={run} explains that run's own config and would ignore this; omit it" for text in ignored)
        )
