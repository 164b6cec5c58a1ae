"""Serve the catalog of runs as a local web page. No torch is imported."""

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
    """Serves until interrupted; address and duration go into the record. Raises: ConfigError: the address is not available."""
    action = spec.action
    assert isinstance(action, BrowseAction)
    if action.where:
        # An invalid condition should fail here, not in the browser.
        query.query_runs(action.dirs, action.where, None, 1)
    with http_server.bind_socket(action.host, action.port) as server_socket:
        url = http_server.format_url(server_socket)
        if not sockets.is_this_machine(action.host):
            console.print_warning(
                f"action.host={action.host}: anyone who can reach this address sees these runs; there is no authentication"
            )
        app, started = web_app.create_app(RunCatalog(action.dirs), action.host), time.perf_counter()
        condition = (action.where or "").strip()
        fragment = f"#/?{urlencode({'where': condition})}" if condition else ""  # what the page shows at first
        console.print_result(f"browse {url}{fragment} (Ctrl-C ends it)")
        http_server.serve_app(app, server_socket)
    return RunResult(out_dir, {"browsed": {"address": url, "seconds": round(time.perf_counter() - started, 1)}})
