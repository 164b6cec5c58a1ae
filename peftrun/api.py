"""The Python API: the same runs as on the command line, composed and checked in the same way.

config = peftrun.load("lora.r=4", "seed=1")     # a typed RunSpec, checked
result = peftrun.run(config)                    # what `peftrun lora.r=4 seed=1` does
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import hub_download, run_overrides
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
    """The typed and checked config of `peftrun OVERRIDES`. Nothing is run and no torch is imported; an adapter on the Hub is downloaded.

    Args: config_dirs: folders of team configs, laid out like `conf/`, or `pkg://PACKAGE`.

    Raises: ConfigError: one line for each problem, as on the command line. AdapterError: an adapter on the Hub cannot be downloaded.
    """
    composed = _compose_overrides(overrides, config_dirs)
    return adapter_defaults.build_run_spec(composed.cfg, composed.overrides)


def run(
    config_or_override: RunSpec | str | None = None,
    *overrides: str,
    out_dir: str | Path | None = None,
    config_dirs: ConfigDirs = (),
) -> RunResult:
    """Runs a config from `load`, or the overrides of `peftrun OVERRIDES`.

    Args: out_dir: the run folder; None: a new one in `outputs/`, as on the command line.

    Raises: PeftrunError: what ends the command line with exit code 1. TypeError: overrides together with a config.
    """
    if isinstance(config_or_override, RunSpec):
        if overrides or config_dirs:
            raise TypeError("peftrun.run: a config is complete; give overrides and config_dirs to peftrun.load")
        adapters = hub_download.pin_adapters(config_or_override.adapter)  # one that was set in the config
        config_or_override = replace(config_or_override, adapter=adapters)
        name = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"  # as `hydra.run.dir` in conf/config.yaml
        return execute.execute_run(
            config_or_override, Path(out_dir or Path("outputs") / config_or_override.action.name / name)
        )
    typed = [text for text in (config_or_override, *overrides) if text is not None]
    composed = _compose_overrides(typed, config_dirs)
    spec, folder = adapter_defaults.build_run_spec(composed.cfg, composed.overrides), Path(out_dir or composed.run_dir)
    execute.ensure_new_run_dir(folder)
    for warning in shadows.list_chosen_shadows(composed.hydra["runtime"]):
        console.print_warning(warning)
    run_overrides.write_overrides(folder, composed.overrides, composed.hydra)
    return execute.execute_run(spec, folder)


def load_adapter(adapter: str, *overrides: str, config_dirs: ConfigDirs = ()) -> tuple[Any, Any]:
    """(PEFT model, tokenizer): a verified adapter on its base model. `overrides` choose model and device.

    Several adapters, as on the command line: `load_adapter("{one: PATH, two: PATH}", "active_adapter=two")`.

    Raises: PeftrunError: see `run`.
    """
    load_module = execute.import_quietly("peftrun.adapters.load")  # torch, so that `import peftrun` stays light
    from peftrun.artifacts import adapter_folder, classifier_head
    from peftrun.models import base as base_models
    from peftrun.models import placement

    spec = load(*overrides, "action=reload", "action.evaluate=false", f"adapter={adapter}", config_dirs=config_dirs)
    adapters = adapter_folder.resolve_adapters(spec.adapter)
    head = classifier_head.select_head(spec.task, adapters, spec.active_adapter)
    with memory_fit.suggest_on_shortage(spec):
        base = base_models.load_base(spec.model, placement.resolve_run_device(spec), head=head)
    return load_module.load(base, adapters, spec.active_adapter, spec.allow_base_mismatch)[0], base.tokenizer


def _compose_overrides(overrides: Sequence[str], config_dirs: ConfigDirs) -> ComposedConfig:
    wrong = next((override for override in overrides if not isinstance(override, str)), None)
    if wrong is not None:
        raise TypeError(f"peftrun: an override must be a string, not {wrong!r}; type load('lora.r=4', 'seed=1')")
    # A single path is accepted too; iterating over a string would give its characters.
    folders = [str(folder) for folder in ([config_dirs] if isinstance(config_dirs, str | Path) else config_dirs)]
    problems = [problem for folder in folders for problem in precheck.check_team_folder(folder)]
    if problems:
        raise ConfigError(*(f"config_dirs: {problem}" for problem in problems))
    return compose.compose_run(overrides, folders)
