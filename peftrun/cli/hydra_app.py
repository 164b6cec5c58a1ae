"""From a command line to finished runs: Hydra composes, `composition` builds, `runs` executes, `console` says what came out."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from peftrun.artifacts.run_layout import CONFIG, CURVES, RECORD, REPORT_PAGE, ROWS
from peftrun.cli import flags, precheck, shell_words
from peftrun.config import migrations, shorthand
from peftrun.config.paths import config_dir
from peftrun.config.search_path import packages, plugin
from peftrun.errors import AdapterError, ArtifactError, ConfigError, DataError, DeviceError, ModelError, PeftrunError
from peftrun.io.atomic_files import DISK_FULL_ERRNOS
from peftrun.sweep import launcher

USER_FAULT, INTERRUPTED = 1, 130
INPUT_FAULTS = (ConfigError, ModelError, AdapterError, DataError, DeviceError)
OPENING = {
    ".hydra",
    CONFIG,
    RECORD,
    REPORT_PAGE,
    CURVES,
    ROWS,
}  # what every run has before it does anything, and what tells of it
SWEEP = {"-m", "--multirun"}
WAIT_FOR_PEOPLE = ("serve", "browse", "generate")


def run_command_line(argv: Sequence[str]) -> int:
    """Runs every job that `argv` describes; returns the exit code: 0, 1 for a fault of the input, 130 if interrupted."""
    apart = [*shell_words.taken_apart(argv)]
    if apart:
        return _print_errors(apart)
    argv, renamed = migrations.rename_overrides(shorthand.expand_shorthand(argv))
    _report_renamed(renamed)
    arguments, unread = flags.parse_flags(argv)
    if arguments is None or unread:
        return _print_errors([*map(precheck.in_a_sweep, unread)] if SWEEP & set(argv) else unread)
    return _run(arguments, argv)


def _run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    sys.argv = [sys.argv[0], *argv]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us as exceptions, not as printed text
    begun: list[Path] = []
    try:
        faults = _check_overrides(arguments) or _run_jobs(_is_sweep_plan(arguments), begun)
    except KeyboardInterrupt:
        _print_errors([_explain_interrupt(argv)])
        return INTERRUPTED
    except PeftrunError as fault:
        return _print_errors(fault.lines)
    except Exception as error:
        from peftrun.composition import compose

        if isinstance(error, OSError) and error.errno and (error.errno in DISK_FULL_ERRNOS or not begun):
            return _print_errors(_for_mode([_explain_os_error(error)], arguments))
        if not isinstance(error, compose.REFUSALS):
            raise
        return _print_errors(_for_mode(_find_composition_problems(arguments, error), arguments))
    return _print_errors([line for fault in faults for line in fault.lines]) if faults else 0


def _explain_os_error(error: OSError) -> str:
    """What kept Hydra from making the run's folder."""
    where = error.filename or os.getcwd()
    if error.errno in DISK_FULL_ERRNOS:
        return f"{where}: the disk is full ({error.strerror}); free space and run again"
    return (
        f"{where}: cannot be made or written ({error.strerror or error}); type hydra.run.dir=FOLDER where you may write"
    )


def _for_mode(lines: Sequence[str], arguments: argparse.Namespace) -> list[str]:
    return [precheck.in_a_sweep(line) if _is_swept(arguments) else line for line in lines]


def _explain_interrupt(argv: Sequence[str]) -> str:
    if shorthand.find_action(argv) != shorthand.DEFAULT_ACTION and not SWEEP & set(argv):
        return "interrupted; what there is so far is in its run folder"
    own = next((text.partition("=")[2] for text in argv if text.startswith("hydra.run.dir=")), None)
    how = "with action.resume=auto" if own is None else f"with action.resume={own} in place of hydra.run.dir={own}"
    return f"interrupted; what had begun says so in its record. A training run continues {how}, a sweep by the same command"


def _report_renamed(lines: Sequence[str]) -> None:
    if lines:
        from peftrun.config import values as config

        config.report_upgrades(lines)


def _check_overrides(arguments: argparse.Namespace) -> list[PeftrunError]:
    return precheck.find_problems(arguments.overrides, arguments.config_dir, _is_swept(arguments))


def _is_sweep_plan(arguments: argparse.Namespace) -> bool:
    return _is_swept(arguments) and "action=plan" in arguments.overrides


def _is_swept(arguments: argparse.Namespace) -> bool:
    return bool(arguments.multirun) or "hydra.mode=MULTIRUN" in arguments.overrides


def _run_jobs(plan: bool, begun: list[Path]) -> list[PeftrunError]:
    """Runs every job of the command line; returns what was at fault. One faulty job does not stop the others.

    Args: plan: of a sweep, which our own launcher makes, whichever is to run the cells. begun: gets the folder of each.
    """
    faults: list[PeftrunError] = []
    launcher.register_launchers()
    plugin.register_search_path()

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    def job(cfg: DictConfig) -> float | None:
        begun.append(Path(HydraConfig.get().runtime.output_dir))
        try:
            return _run_job(cfg)
        except PeftrunError as fault:
            faults.append(fault)
            return None

    given = sys.argv
    try:
        if plan:
            sys.argv = [*launcher.use_shared_base(given)]
        with _skip_mode_composition(given):
            job()
    finally:
        sys.argv = given
    return [*faults, *launcher.take_errors()]


@contextmanager
def _skip_mode_composition(argv: Sequence[str]) -> Iterator[None]:
    """Hydra composes everything a first time only to see whether a file sets `hydra.mode`; none of ours does, so where no
    other files can be chosen that is left out."""
    flags = {text for text in argv[1:] if text.startswith("-")} - {"-m", "--multirun"}
    others = flags or any("hydra" in text for text in argv[1:]) or packages.find_config_packages()
    asking = Hydra.get_mode
    if not others:
        Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = asking  # type: ignore[method-assign]


def _run_job(cfg: DictConfig) -> float | None:
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    spec = _build_spec(cfg, out_dir)
    from peftrun import console
    from peftrun.config.search_path import shadows
    from peftrun.runs import execute

    for line in shadows.list_chosen_shadows(HydraConfig.get().runtime):
        console.print_warning(line)
    with nullcontext() if spec.action.name in WAIT_FOR_PEOPLE else console.print_heartbeats():
        try:
            result = execute.execute_run(spec, out_dir)
        except INPUT_FAULTS:
            _remove_new(out_dir)
            raise
    result.next_commands = _complete_commands(result.next_commands, spec)
    console.print_summary_table(result)
    return result.objective


def _complete_commands(commands: list[str], spec: Any) -> list[str]:
    """The commands with what they need of what was typed here; for a model that was made of an adapter, of what its training was typed with."""
    from peftrun.artifacts import run_overrides

    typed_here = list(HydraConfig.get().overrides.task)
    places = run_overrides.format_config_sources(HydraConfig.get().runtime.config_sources)
    if spec.device.strategy is not None:
        typed_here = run_overrides.strip_process_overrides(typed_here)
    learned: list[str] = []
    if spec.adapter and not run_overrides.select_row_overrides(typed_here):
        words, its_places = run_overrides.read_adapter_overrides(spec.adapter[spec.active or next(iter(spec.adapter))])
        learned, places = run_overrides.select_row_overrides(words), places or its_places
    return [
        run_overrides.add_shared_overrides(command, [*([] if " adapter=" in command else learned), *typed_here], places)
        for command in commands
    ]


def _build_spec(cfg: DictConfig, out_dir: Path) -> Any:
    """The run's spec; on a fault, the folder that Hydra has just made is taken away again."""
    from peftrun.composition import adapter_defaults

    _check_new(out_dir)
    try:
        _check_keys()
        return adapter_defaults.build_run_spec(cfg, list(HydraConfig.get().overrides.task))
    except PeftrunError:
        _remove_new(out_dir)
        raise


def _check_new(out_dir: Path) -> None:
    """Raises: ArtifactError: the folder holds a run already."""
    chosen = HydraConfig.get()
    if not (out_dir / RECORD).exists():
        return
    if chosen.mode == RunMode.MULTIRUN:
        raise _cell_holds_a_run(chosen.sweep.dir, f"hydra.sweep.subdir={chosen.sweep.subdir}", chosen.overrides.hydra)
    raise precheck.make_run_exists_error(out_dir)


def _check_keys() -> None:
    """Raises: ConfigError: a single run is given a sweep's folder."""
    chosen = HydraConfig.get()
    for text in chosen.overrides.hydra if chosen.mode != RunMode.MULTIRUN else ():
        key, _, value = text.partition("=")
        if key == shorthand.SWEEP_DIR:
            raise ConfigError(
                f"{text}: is of a sweep, and this is a single run; type {shorthand.RUN_DIR}={value}, or -m"
            )


def _cell_holds_a_run(sweep: str, subdir: str, overrides: Sequence[str]) -> ArtifactError:
    if subdir in overrides:  # the same name for every cell
        return ArtifactError(f"{subdir}: each cell needs a folder of its own; type '{subdir}-${{hydra.job.num}}'")
    name = subdir.partition("=")[2]
    return ArtifactError(
        f"{shorthand.SWEEP_DIR}={sweep}: {name} in it holds a run already; name a folder that does not exist"
    )


def _remove_new(out_dir: Path) -> None:
    """Takes away the folder of a run that was refused before it had made, measured or logged anything."""
    if {path.name for path in out_dir.iterdir()} <= OPENING:
        shutil.rmtree(out_dir)
        for parent in list(out_dir.parents)[:2]:  # outputs/<action>, outputs: when this run was the first
            if not any(parent.iterdir()):
                parent.rmdir()


def _find_composition_problems(arguments: argparse.Namespace, error: Exception) -> Sequence[str]:
    from peftrun.composition.compose import explain_overrides, explain_sweep_values

    known = explain_overrides(arguments.overrides, arguments.config_dir)
    if not _is_swept(arguments):
        known = known or explain_sweep_values(arguments.overrides)
    if not known and isinstance(error, ValueError):
        raise error  # not Hydra's: a bug
    return known or [str(error).splitlines()[0]]


def _print_errors(lines: Sequence[str]) -> int:
    for line in lines:
        print(f"peftrun: {line}", file=sys.stderr)
    return USER_FAULT
