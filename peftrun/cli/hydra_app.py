"""From a command line to finished runs: Hydra composes, `composition` builds the spec, `runs` executes it, `console` prints the result."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from peftrun.artifacts.run_layout import CONFIG, CURVES, FUNCTIONS, RECORD, REPORT_PAGE, ROWS
from peftrun.cli import flags, precheck, shell_words
from peftrun.compat.hydra import skip_mode_composition
from peftrun.config import old_overrides, shorthand
from peftrun.config.paths import config_dir
from peftrun.config.search_path import packages, plugin
from peftrun.errors import AdapterError, ArtifactError, ConfigError, DataError, DeviceError, ModelError, PeftrunError
from peftrun.io.atomic_files import DISK_FULL_ERRNOS
from peftrun.sweep import launcher

INPUT_ERROR, INTERRUPTED = 1, 130  # exit codes; 128 + SIGINT
INPUT_ERRORS = (ConfigError, ModelError, AdapterError, DataError, DeviceError)
# Files of a run folder that hold no result: written before the run starts, or derived from the record.
INITIAL_FILES = {".hydra", CONFIG, RECORD, REPORT_PAGE, CURVES, ROWS, FUNCTIONS}
SWEEP = {"-m", "--multirun"}
INTERACTIVE = ("serve", "browse", "generate")

# Overrides of Hydra's own config that leave its mode as it is.
WITHOUT_MODE = (
    "hydra.run.",
    "hydra.sweep.",
    "hydra.job.",
    "hydra.launcher.",
    "hydra.sweeper.",
    "hydra/launcher=",
    "hydra/sweeper=",
)


def run_command_line(argv: Sequence[str]) -> int:
    """Run every job that `argv` describes; the exit code: 0, 1 for wrong input, 130 if interrupted."""
    split_values = [*shell_words.find_split_values(old_overrides.rename_overrides(argv)[0])]
    if split_values:
        return _print_errors(split_values)
    argv, renamed = shorthand.expand_overrides(argv)
    if renamed:
        from peftrun.config import values as config

        config.report_upgrades(renamed)
    arguments, problems = flags.parse_flags(argv)
    if arguments is None:
        return _print_errors([*map(precheck.advise_for_sweep, problems)] if SWEEP & set(argv) else problems)
    # Hydra's own parser wants all flags first.
    ordered = [*(word for word in argv if word not in arguments.overrides), *arguments.overrides]
    return _run_parsed(arguments, ordered)


def _run_parsed(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    sys.argv = [sys.argv[0], *argv]  # where hydra.main reads its overrides
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us as exceptions, not as printed text
    started: list[Path] = []
    is_sweep = _is_sweep(arguments)
    try:
        errors = precheck.find_problems(arguments.overrides, arguments.config_dir, is_sweep) or _run_jobs(
            is_sweep and "action=plan" in arguments.overrides, started
        )
    except KeyboardInterrupt:
        _print_errors([_explain_interrupt(argv)])
        return INTERRUPTED
    except PeftrunError as error:
        return _print_errors(error.lines)
    except Exception as error:
        from peftrun.composition import compose

        if isinstance(error, BrokenPipeError) and not started:  # of Hydra's own prints, such as `--cfg job`
            from peftrun import console

            console.discard_output()
            return 0
        # Once a job has started, other OS errors are bugs, or were turned into a PeftrunError.
        if isinstance(error, OSError) and error.errno and (error.errno in DISK_FULL_ERRNOS or not started):
            path = error.filename or os.getcwd()  # the run folder, which Hydra could not create
            if error.errno in DISK_FULL_ERRNOS:
                line = f"the disk is full ({error.strerror}); free space and run again"
            else:
                line = f"cannot be created or written ({error.strerror or error}); type hydra.run.dir=FOLDER where you may write"
            lines: Sequence[str] = [f"{path}: {line}"]
        elif isinstance(error, compose.REFUSALS):
            lines = _find_composition_problems(arguments, error)
        else:
            raise
        return _print_errors([precheck.advise_for_sweep(line) if is_sweep else line for line in lines])
    return _print_errors([line for error in errors for line in error.lines]) if errors else 0


def _explain_interrupt(argv: Sequence[str]) -> str:
    if shorthand.find_action(argv) != shorthand.DEFAULT_ACTION and not SWEEP & set(argv):
        return "interrupted; results so far are in the run folder"
    run_dir = next((text.partition("=")[2] for text in argv if text.startswith("hydra.run.dir=")), None)
    advice = (
        "with action.resume=auto"
        if run_dir is None
        else f"with action.resume={run_dir} in place of hydra.run.dir={run_dir}"
    )
    return f"interrupted; this is noted in the records of started runs. A training run continues {advice}, a sweep by the same command"


def _is_sweep(arguments: argparse.Namespace) -> bool:
    return bool(arguments.multirun) or "hydra.mode=MULTIRUN" in arguments.overrides


def _run_jobs(is_plan: bool, started: list[Path]) -> list[PeftrunError]:
    """Run every job of the command line; the errors. One failed job does not stop the others.

    Args:
        is_plan: the command plans a sweep, which always uses the shared_base launcher.
        started: the folder of each job is appended.
    """
    errors: list[PeftrunError] = []
    # Registered here, not as a Hydra plugin package, which every Hydra program of the environment would import.
    launcher.register_launchers()
    plugin.register_search_path()

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    def job(cfg: DictConfig) -> float | None:
        started.append(Path(HydraConfig.get().runtime.output_dir))
        try:
            return _run_job(cfg)
        except PeftrunError as error:  # raised on, it would end the whole multirun
            errors.append(error)
            return None

    argv = sys.argv
    try:
        if is_plan:
            sys.argv = [*launcher.use_shared_base(argv)]
        with nullcontext() if _may_set_mode(argv) else skip_mode_composition():
            job()
    finally:
        sys.argv = argv
    return [*errors, *launcher.take_errors()]


def _may_set_mode(argv: Sequence[str]) -> bool:
    """Whether anything but peftrun's own config files, which do not set `hydra.mode`, can take part in the composition."""
    words = [text.lstrip("+~") for text in argv[1:] if text not in SWEEP]
    may_set = (text.startswith(("-", "hydra")) and not text.startswith(WITHOUT_MODE) for text in words)
    return any(may_set) or bool(packages.find_config_packages())


def _run_job(cfg: DictConfig) -> float | None:
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    spec = _build_spec(cfg, out_dir)
    from peftrun import console
    from peftrun.config.search_path import shadows
    from peftrun.runs import execute

    for warning in shadows.list_chosen_shadows(HydraConfig.get().runtime):
        console.print_warning(warning)
    # A heartbeat line would break into the user's input, or a server's log.
    with nullcontext() if spec.action.name in INTERACTIVE else console.print_heartbeats():
        try:
            result = execute.execute_run(spec, out_dir)
        except INPUT_ERRORS:
            _remove_if_initial(out_dir)
            raise
    result.next_commands = _complete_commands(result.next_commands, spec)
    console.print_summary_table(result)
    return result.objective


def _complete_commands(commands: list[str], spec: Any) -> list[str]:
    """Next commands with the overrides they need from this command line; for a model made from an adapter, from its training's command line."""
    from peftrun.artifacts import run_overrides

    overrides = list(HydraConfig.get().overrides.task)
    places = run_overrides.format_config_sources(HydraConfig.get().runtime.config_sources)
    if spec.device.strategy is not None:
        overrides = run_overrides.strip_process_overrides(overrides)
    row_overrides: list[str] | None = []
    if spec.adapter and not run_overrides.select_row_overrides(overrides):
        path = spec.adapter[spec.active_adapter or next(iter(spec.adapter))]
        adapter_overrides, adapter_places = run_overrides.read_adapter_overrides(path)
        row_overrides, places = run_overrides.select_row_overrides(adapter_overrides), places or adapter_places
        if not adapter_overrides and any(map(_reads_own_rows, commands)):
            row_overrides = _find_task_overrides(path, spec)
    if row_overrides is None:
        commands = [command for command in commands if not _reads_own_rows(command)]
    return [
        run_overrides.add_shared_overrides(
            command, [*([] if " adapter=" in command else row_overrides or []), *overrides], places, spec
        )
        for command in commands
    ]


def _reads_own_rows(command: str) -> bool:
    """Whether the command measures a model without an adapter, which would say what its rows are."""
    return command.startswith("peftrun action=evaluate ") and " adapter=" not in command


def _find_task_overrides(path: str, spec: Any) -> list[str] | None:
    """Overrides of the run's task, as an adapter outside a run says it; None if that says none."""
    from peftrun.artifacts import adapter_origin
    from peftrun.composition.spec import get_default_values
    from peftrun.config_tools import minimal_overrides

    origin = adapter_origin.read_origin(path, "default")
    if origin is None or "task" not in origin.groups:
        return None
    return minimal_overrides.find_minimal_overrides({**get_default_values(), "task": asdict(spec.task)})


def _build_spec(cfg: DictConfig, out_dir: Path) -> Any:
    """The run's spec; on an error the folder that Hydra has just created is removed."""
    from peftrun.composition import adapter_defaults

    hydra_config = HydraConfig.get()
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    if (out_dir / RECORD).exists():
        if not is_sweep:
            raise precheck.make_run_exists_error(out_dir)
        sweep_dir, subdir = hydra_config.sweep.dir, hydra_config.sweep.subdir
        if f"hydra.sweep.subdir={subdir}" in hydra_config.overrides.hydra:  # no interpolation, so equal for all cells
            raise ArtifactError(
                f"hydra.sweep.subdir={subdir}: each cell needs its own folder; type 'hydra.sweep.subdir={subdir}-${{hydra.job.num}}'"
            )
        raise ArtifactError(
            f"{shorthand.SWEEP_DIR}={sweep_dir}: {subdir} in it holds a run already; name a folder that does not exist"
        )
    try:
        for text in () if is_sweep else hydra_config.overrides.hydra:
            key, _, value = text.partition("=")
            if key == shorthand.SWEEP_DIR:
                raise ConfigError(
                    f"{text}: applies to sweeps, and this is a single run; type {shorthand.RUN_DIR}={value}, or -m"
                )
        return adapter_defaults.build_run_spec(cfg, list(hydra_config.overrides.task))
    except PeftrunError:
        _remove_if_initial(out_dir)
        raise


def _remove_if_initial(out_dir: Path) -> None:
    """Remove the folder of a run that was refused before it produced anything."""
    if {path.name for path in out_dir.iterdir()} <= INITIAL_FILES:
        shutil.rmtree(out_dir)
        for parent in list(out_dir.parents)[:2]:  # outputs/<action> and outputs, if this was the first run
            if not any(parent.iterdir()):
                parent.rmdir()


def _find_composition_problems(arguments: argparse.Namespace, error: Exception) -> Sequence[str]:
    from peftrun.composition.compose import explain_overrides, explain_sweep_values

    problems = explain_overrides(arguments.overrides, arguments.config_dir)
    if not _is_sweep(arguments):
        problems = problems or explain_sweep_values(arguments.overrides)
    if not problems and isinstance(error, ValueError):
        raise error  # not from Hydra, so a bug
    return problems or [str(error).splitlines()[0]]


def _print_errors(lines: Sequence[str]) -> int:
    for line in lines:
        print(f"peftrun: {line}", file=sys.stderr)
    return INPUT_ERROR
