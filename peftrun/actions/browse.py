"""Show the catalogue of runs as a web page on this machine. Nothing heavy is imported."""

import time
from pathlib import Path
from urllib.parse import urlencode

from peftrun import console
from peftrun.config.schema.actions import BrowseAction
from peftrun.config.schema.run import RunSpec
from peftrun.result import RunResult
from peftrun.results.catalog import query, web_app
from peftrun.results.catalog.web_api import RunCatalog
from peftrun.system import http_server, sockets


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """How long it was served, and where. Raises: ConfigError: the address cannot be had."""
    action = spec.action
    assert isinstance(action, BrowseAction)
    if action.where:
        query.query_runs(
            action.roots, action.where, None, 1
        )  # a condition that cannot be met is told here, and not by the page
    with http_server.bind_socket(action.host, action.port) as listening:
        where = http_server.format_url(listening)
        if not sockets.is_this_machine(action.host):
            console.print_warning(
                f"action.host={action.host}: whoever reaches this address sees these runs; no key is needed"
            )
        page, started = web_app.create_app(RunCatalog(action.roots), action.host), time.perf_counter()
        console.print_result(f"browse {where}{_build_filter_fragment(action.where)} (Ctrl-C ends it)")
        http_server.serve_app(page, listening)
    return RunResult(out_dir, {"browsed": {"address": where, "seconds": round(time.perf_counter() - started, 1)}})


def _build_filter_fragment(where: str | None) -> str:
    """The part of the address that says what the page shows at first."""
    return f"#/?{urlencode({'where': where.strip()})}" if where and where.strip() else ""
