"""The same runs from Python: what can be typed can be called, and goes the same way.

config = peftrun.load("lora.r=4", "seed=1")     # a typed RunSpec, checked
result = peftrun.run(config)                    # what `peftrun lora.r=4 seed=1` does
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.cli import precheck
from peftrun.composition import adapter_defaults, compose
from peftrun.composition.compose import Composed
from peftrun.config.schema.run import RunSpec
from peftrun.config.search_path import shadows
from peftrun.errors import ConfigError
from peftrun.planning import memory_fit
from peftrun.result import RunResult
from peftrun.runs import execute

Team = str | Path | Sequence[str | Path]


def load(*overrides: str, config_dirs: Team = ()) -> RunSpec:
    """The run that `peftrun OVERRIDES` would do, composed, typed and checked; nothing is run, no torch is imported.

    Args: config_dirs: folders of team configs, laid out like `conf/`; `pkg://PACKAGE` for those of a package.

    Raises: ConfigError: one line for each problem, as on the command line.
    """
    composed = _composed(overrides, config_dirs)
    return adapter_defaults.build(composed.cfg, composed.overrides)


def run(
    config_or_override: RunSpec | str | None = None,
    *overrides: str,
    out_dir: str | Path | None = None,
    config_dirs: Team = (),
) -> RunResult:
    """What `peftrun OVERRIDES` does; or the run that `load` gave.

    Args: out_dir: the run folder; None: a new one below `outputs/`, as on the command line.

    Raises: PeftrunError: what the command line would say with exit code 1. TypeError: overrides beside a config.
    """
    if isinstance(config_or_override, RunSpec):
        if overrides or config_dirs:
            raise TypeError("peftrun.run: a config is complete; give overrides and config_dirs to peftrun.load")
        return execute.run(config_or_override, Path(out_dir or _dated(config_or_override)))
    typed = [text for text in (config_or_override, *overrides) if text is not None]
    composed = _composed(typed, config_dirs)
    spec, folder = adapter_defaults.build(composed.cfg, composed.overrides), Path(out_dir or composed.run_dir)
    execute.refuse_taken(folder)
    for line in shadows.chosen(composed.hydra["runtime"]):
        console.warn(line)
    run_overrides.leave(folder, composed.overrides, composed.hydra)
    return execute.run(spec, folder)


def load_adapter(adapter: str, *overrides: str, config_dirs: Team = ()) -> tuple[Any, Any]:
    """A proved adapter on its base, ready to answer: (PEFT model, tokenizer). `overrides` choose model and device.

    Several, as on the command line: `load_adapter("{one: PATH, two: PATH}", "active=two")`.

    Raises: PeftrunError: see `run`.
    """
    loading = execute.heavy("peftrun.adapters.load")
    from peftrun.artifacts import classifier_head
    from peftrun.models import base as base_models
    from peftrun.models import placement

    spec = load(*overrides, "action=reload", "action.evaluate=false", f"adapter={adapter}", config_dirs=config_dirs)
    head = classifier_head.wanted(spec.task, spec.adapter, spec.active)
    with memory_fit.advising(spec):
        base = base_models.load_base(spec.model, placement.resolve(spec), head=head)
    return loading.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)[0], base.tokenizer


def _composed(overrides: Sequence[str], config_dirs: Team) -> Composed:
    other = next((one for one in overrides if not isinstance(one, str)), None)
    if other is not None:
        raise TypeError(f"peftrun: an override is a string, and {other!r} is none; type load('lora.r=4', 'seed=1')")
    places = [str(one) for one in ([config_dirs] if isinstance(config_dirs, str | Path) else config_dirs)]
    faults = [line for place in places for line in precheck.team_folder(place)]
    if faults:
        raise ConfigError(*(f"config_dirs: {line}" for line in faults))
    return compose.compose_run(overrides, places)


def _dated(spec: RunSpec) -> Path:
    return Path("outputs") / spec.action.name / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
