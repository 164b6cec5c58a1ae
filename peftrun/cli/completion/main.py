"""`peftrun -sc install=bash`, `uninstall=zsh`, `query=fish`: what is asked of tab completion, answered on standard output."""

import os
import sys
from collections.abc import Sequence

from peftrun.cli.completion import scripts

SHELLS = tuple(scripts.INSTALL)
EXAMPLE = "type peftrun -sc install=bash|zsh|fish, uninstall=…, or query=… with COMP_LINE set"


def run_completion(argv: Sequence[str]) -> int:
    """Answers what stands beside `-sc`; returns the exit code: 1 where that is nothing that can be answered."""
    asked = [text for text in argv if not text.startswith("-")]
    verb, _, shell = (asked or ["nothing"])[0].partition("=")
    if shell not in SHELLS or verb not in ("install", "uninstall", "query"):
        print(f"peftrun: -sc {' '.join(asked)}: there is no completion for it; {EXAMPLE}", file=sys.stderr)
        return 1
    print(
        {"install": scripts.INSTALL, "uninstall": scripts.UNINSTALL}[verb][shell]
        if verb != "query"
        else _format_candidates(shell)
    )
    return 0


def _format_candidates(shell: str) -> str:
    from peftrun.cli.completion.candidates import find_candidates

    found = find_candidates(os.environ.get("COMP_LINE", ""))
    if shell == "bash":
        return "\n".join(sorted(found))
    return "\n".join(f"{text}\t{about}" if about else text for text, about in sorted(found.items()))
