"""The one entrypoint: help and versions at once, everything else through `jobs`. Imports nothing that takes time."""

import sys
from collections.abc import Sequence
from itertools import pairwise

HELP, VERSION, CONFIG_DIR = {"-h", "--help"}, {"--version"}, ("-cd", "--config-dir")
BUG = 70  # as in sysexits.h: a fault of the program, not of what it was given
COMPLETION = {"-sc", "--shell-completion"}


def main() -> int:
    """Runs the command line in `sys.argv`; returns the exit code. A bug keeps its traceback, and ends with `BUG`."""
    argv = sys.argv[1:]
    if HELP & set(argv):
        from peftrun.cli import help

        print(help.render_help(_find_team_dir(argv)))
        return 0
    if VERSION & set(argv):
        from peftrun.system.versions import collect_versions

        print("\n".join(f"{name} {version}" for name, version in collect_versions().items()))
        return 0
    if COMPLETION & set(argv):
        from peftrun.cli.completion import main as answer

        return answer.run_completion(argv)
    from peftrun.cli import hydra_app

    try:
        return hydra_app.run_command_line(argv)
    except Exception:
        import traceback

        traceback.print_exc()
        return BUG


def _find_team_dir(argv: Sequence[str]) -> str | None:
    for flag, value in pairwise(argv):
        if flag in CONFIG_DIR:
            return value
    return next((item.partition("=")[2] for item in argv if item.startswith("--config-dir=")), None)
