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
from peftrun.composition.compose import ComposedConfig
from peftrun.config.schema.run import RunSpec
from peftrun.config.search_path import shadows
from peftrun.errors import ConfigError
from peftrun.planning import memory_fit
from peftrun.result import RunResult
from peftrun.runs import execute

ConfigDirs = str | Path | Sequence[str | Path]


def load(*overrides: str, config_dirs: ConfigDirs = ()) -> RunSpec:
    """The run that `peftrun OVERRIDES` would do, composed, typed and checked; nothing is run, no torch is imported.

    Args: config_dirs: folders of team configs, laid out like `conf/`; `pkg://PACKAGE` for those of a package.

    Raises: ConfigError: one line for each problem, as on the command line.
    """
    composed = _compose_overrides(overrides, config_dirs)
    return adapter_defaults.build_run_spec(composed.cfg, composed.overrides)


def run(
    config_or_override: RunSpec | str | None = None,
    *overrides: str,
    out_dir: str | Path | None = None,
    config_dirs: ConfigDirs = (),
) -> RunResult:
    """What `peftrun OVERRIDES` does; or the run that `load` gave.

    Args: out_dir: the run folder; None: a new one below `outputs/`, as on the command line.

    Raises: PeftrunError: what the command line would say with exit code 1. TypeError: overrides beside a config.
    """
    if isinstance(config_or_override, RunSpec):
        if overrides or config_dirs:
            raise TypeError("peftrun.run: a config is complete; give overrides and config_dirs to peftrun.load")
        return execute.execute_run(config_or_override, Path(out_dir or _build_run_dir(config_or_override)))
    typed = [text for text in (config_or_override, *overrides) if text is not None]
    composed = _compose_overrides(typed, config_dirs)
    spec, folder = adapter_defaults.build_run_spec(composed.cfg, composed.overrides), Path(out_dir or composed.run_dir)
    execute.ensure_new_run_dir(folder)
    for line in shadows.list_chosen_shadows(composed.hydra["runtime"]):
        console.print_warning(line)
    run_overrides.write_overrides(folder, composed.overrides, composed.hydra)
    return execute.execute_run(spec, folder)


def load_adapter(adapter: str, *overrides: str, config_dirs: ConfigDirs = ()) -> tuple[Any, Any]:
    """A proved adapter on its base, ready to answer: (PEFT model, tokenizer). `overrides` choose model and device.

    Several, as on the command line: `load_adapter("{one: PATH, two: PATH}", "active=two")`.

    Raises: PeftrunError: see `run`.
    """
    loading = execute.import_quietly("peftrun.adapters.load")
    from peftrun.artifacts import classifier_head
    from peftrun.models import base as base_models
    from peftrun.models import placement

    spec = load(*overrides, "action=reload", "action.evaluate=false", f"adapter={adapter}", config_dirs=config_dirs)
    head = classifier_head.select_head(spec.task, spec.adapter, spec.active)
    with memory_fit.suggest_on_shortage(spec):
        base = base_models.load_base(spec.model, placement.resolve_run_device(spec), head=head)
    return loading.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)[0], base.tokenizer


def _compose_overrides(overrides: Sequence[str], config_dirs: ConfigDirs) -> ComposedConfig:
    other = next((one for one in overrides if not isinstance(one, str)), None)
    if other is not None:
        raise TypeError(f"peftrun: an override is a string, and {other!r} is none; type load('lora.r=4', 'seed=1')")
    places = [str(one) for one in ([config_dirs] if isinstance(config_dirs, str | Path) else config_dirs)]
    faults = [line for place in places for line in precheck.check_team_folder(place)]
    if faults:
        raise ConfigError(*(f"config_dirs: {line}" for line in faults))
    return compose.compose_run(overrides, places)


def _build_run_dir(spec: RunSpec) -> Path:
    return Path("outputs") / spec.action.name / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
