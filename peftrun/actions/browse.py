"""Show the catalogue of runs as a web page on this machine. Nothing heavy is imported."""

import time
from pathlib import Path
from urllib.parse import urlencode

from peftrun import addresses, console
from peftrun.action_specs import BrowseAction
from peftrun.catalogue import app, search, server
from peftrun.catalogue.pages import Catalogue
from peftrun.result import RunResult
from peftrun.schema import RunSpec


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """How long it was served, and where. Raises: ConfigError: the address cannot be had."""
    action = spec.action
    assert isinstance(action, BrowseAction)
    if action.where:
        search.find(
            action.roots, action.where, None, 1
        )  # a condition that cannot be met is told here, and not by the page
    with server.bound(action.host, action.port) as listening:
        where = server.address(listening)
        if not addresses.is_this_machine(action.host):
            console.warn(f"action.host={action.host}: whoever reaches this address sees these runs; no key is needed")
        page, started = app.made(Catalogue(action.roots), action.host), time.perf_counter()
        console.show(f"browse {where}{_first(action.where)} (Ctrl-C ends it)")
        server.run(page, listening)
    return RunResult(out_dir, {"browsed": {"address": where, "seconds": round(time.perf_counter() - started, 1)}})


def _first(where: str | None) -> str:
    """The part of the address that says what the page shows at first."""
    return f"#/?{urlencode({'where': where.strip()})}" if where and where.strip() else ""
