"""Show where each value of a config comes from, or how two runs' configs differ. No torch is imported."""

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
    """Prints the explanation and records it. Raises: ConfigError: it cannot be composed, or no overrides lead to it."""
    action = spec.action
    assert isinstance(action, ExplainAction)
    # The overrides of this action itself, such as `run=`, are not part of the config to explain.
    typed = select_config_overrides(run_overrides.read_overrides(out_dir), action.for_action)
    chosen, asked = f"action={action.for_action}", f"action.for_action={action.for_action}"
    ignored = [asked if text == chosen else text for text in typed] if action.run is not None else []
    if ignored:
        advice = f"run={action.run} explains that run's own config and would ignore this; omit it"
        raise ConfigError(*(f"{text}: {advice}" for text in ignored))
    explained: ConfigExplanation | ConfigDifference
    if action.run is None:
        explained = explanation.explain_overrides(typed, run_overrides.read_search_path(out_dir), spec.adapter)
    elif action.compare_with is None:
        explained = explanation.explain_run(Path(action.run).expanduser())
    else:
        explained = explanation.explain_difference(
            Path(action.run).expanduser(), Path(action.compare_with).expanduser()
        )
    if action.format == "json":
        console.print_result(json.dumps(explained.as_dict(), indent=2, ensure_ascii=False))
    else:
        lines = (
            explain_tables.format_difference(explained)
            if isinstance(explained, ConfigDifference)
            else explain_tables.format_explanation(explained)
        )
        console.print_result("\n".join(lines))
    return RunResult(out_dir, {"explained": explained.as_dict()})


def select_config_overrides(typed: Sequence[str], of: str) -> list[str]:
    """The typed overrides without those of this action and of Hydra; `of` is the action whose config is explained."""
    overrides = [
        text for text in typed if text.lstrip("+~").partition("=")[0].partition(".")[0] not in ("action", "hydra")
    ]
    return overrides if of == "train" else [f"action={of}", *overrides]
