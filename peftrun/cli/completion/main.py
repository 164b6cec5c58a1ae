"""`peftrun -sc install=bash`, `uninstall=zsh`, `query=fish`: scripts and candidates of tab completion, on standard output."""

import os
import sys
from collections.abc import Sequence

from peftrun.cli.completion import scripts

SHELLS = tuple(scripts.INSTALL)
EXAMPLE = "type peftrun -sc install=bash|zsh|fish, uninstall=…, or query=… with COMP_LINE set"


def run_completion(argv: Sequence[str]) -> int:
    """Print the answer to the word after `-sc`; exit code 1 for an unknown request."""
    requests = [text for text in argv if not text.startswith("-")]
    verb, _, shell = next(iter(requests), "").partition("=")
    if shell not in SHELLS or verb not in ("install", "uninstall", "query"):
        print(f"peftrun: -sc {' '.join(requests)}: there is no completion for it; {EXAMPLE}", file=sys.stderr)
        return 1
    if verb != "query":
        print((scripts.INSTALL if verb == "install" else scripts.UNINSTALL)[shell])
        return 0
    from peftrun.cli.completion.candidates import find_candidates

    candidates = sorted(find_candidates(os.environ.get("COMP_LINE", "")).items())
    # bash shows no descriptions; zsh and fish take them after a tab.
    print("\n".join(f"{text}\t{about}" if about and shell != "bash" else text for text, about in candidates))
    return 0
