"""HTTP routes of action=browse, and its security headers: read-only, same origin, no external requests."""

import ipaddress
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from peftrun.errors import ConfigError
from peftrun.results.catalog import comparison
from peftrun.results.catalog.web_api import RunCatalog, UnknownRunError

STATIC_DIR = Path(__file__).parent
FILES = {"/": ("browse.html", "text/html"), "/browse.css": ("browse.css", "text/css"), "/browse.js": ("browse.js", "text/javascript"),
         "/pieces.js": ("pieces.js", "text/javascript")}  # fmt: skip
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGE_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# A report has inline styles and drawings, and texts of models and data: scripts are never run in it.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
MEDIA_TYPES = {".html": "text/html", ".svg": "image/svg+xml"}


def create_app(catalog: RunCatalog, host: str) -> Any:
    """The FastAPI application for a catalog. Args: host: the name under which it is served."""
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

    app = FastAPI(title="peftrun browse", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def check_host(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        if not is_local_host(request.headers.get("host", ""), host):
            return PlainTextResponse("this name is not that of this machine\n", 403, headers=HEADERS)
        response = await call_next(request)
        for key, value in {"Content-Security-Policy": PAGE_POLICY, **HEADERS}.items():
            response.headers.setdefault(key, value)  # a report sets a policy of its own
        return response

    @app.exception_handler(ConfigError)
    async def report_config_error(_: Any, fault: ConfigError) -> Any:
        return JSONResponse({"problem": fault.lines[0]}, 400)

    @app.exception_handler(UnknownRunError)
    async def report_unknown_run(*_: Any) -> Any:
        return JSONResponse({"problem": "there is no such run any more"}, 404)

    def make_static_route(name: str, media_type: str) -> Callable[[], Any]:
        return lambda: FileResponse(STATIC_DIR / name, media_type=media_type)

    for path, (name, media_type) in FILES.items():
        app.add_api_route(path, make_static_route(name, media_type), methods=["GET"])
    _add_api_routes(app, catalog)

    @app.get("/run/{name}/{file}")
    def serve_run_file(name: str, file: str) -> Any:
        path = catalog.find_file(name, file)
        if path is None:
            return PlainTextResponse("there is no such file\n", 404)
        return FileResponse(
            path, media_type=MEDIA_TYPES[path.suffix], headers={"Content-Security-Policy": REPORT_POLICY}
        )

    return app


def _add_api_routes(app: Any, catalog: RunCatalog) -> None:
    from fastapi import Query

    ids: Any = Query(alias="id")

    @app.get("/api/runs")
    def list_runs(where: str = "", sort: str = "") -> Any:
        return catalog.list_runs(where, sort or None)

    @app.get("/api/columns")
    def list_columns() -> Any:
        return catalog.list_columns()

    @app.get("/api/run/{name}")
    def show_run(name: str) -> Any:
        return catalog.describe_run(name)

    @app.get("/api/compare")
    def compare_runs(names: list[str] = ids) -> Any:
        return catalog.compare_runs(names)

    @app.get("/api/curves")
    def draw_curves(names: list[str] = ids, narrow: bool = False) -> Any:
        return catalog.draw_curves(names[: comparison.MAX_RUNS], narrow)

    @app.get("/api/adapters/{first}/{second}")
    def compare_adapters(first: str, second: str) -> Any:
        return catalog.compare_adapters(first, second)


def is_local_host(header: str, host: str) -> bool:
    """Whether the Host header names this machine: an IP address, localhost, its name, or the name it is served under.

    This stops DNS rebinding: a foreign page whose own name resolves to this machine could otherwise read the responses.
    """
    # Without the port; an IPv6 address has colons too, but ends with a bracket.
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    try:
        return bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return name.lower() in {"localhost", host.lower(), platform.node().lower()} - {""}
