"""Entry point: help and versions at once, everything else through `hydra_app`. Imports nothing slow."""

import sys
from itertools import pairwise

HELP, VERSION, CONFIG_DIR = {"-h", "--help"}, {"--version"}, ("-cd", "--config-dir")
BUG = 70  # EX_SOFTWARE of sysexits.h: an error of the program, not of its input
COMPLETION = {"-sc", "--shell-completion"}


def main() -> int:
    """Run the command line in `sys.argv`; the exit code. An unexpected exception is printed with its traceback and gives `BUG`."""
    argv = sys.argv[1:]
    if HELP & set(argv):
        from peftrun.cli import help

        # Hydra does not run here, so its --config-dir is read by hand: `FLAG DIR` or `FLAG=DIR`.
        team_dirs = [value for flag, value in pairwise(argv) if flag in CONFIG_DIR]
        team_dirs += [word.partition("=")[2] for word in argv if word.startswith("--config-dir=")]
        _print(help.render_help(next(iter(team_dirs), None), argv))
        return 0
    if VERSION & set(argv):
        from peftrun.system.versions import collect_versions

        _print("\n".join(f"{name} {version}" for name, version in collect_versions().items()))
        return 0
    if COMPLETION & set(argv):
        from peftrun.cli.completion import main as completion

        return completion.run_completion(argv)
    from peftrun.cli import hydra_app

    try:
        return hydra_app.run_command_line(argv)
    except Exception:
        import traceback

        traceback.print_exc()
        return BUG


def _print(text: str) -> None:
    """Like `console.print_result`, without its imports."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        from peftrun import console

        console.discard_output()
