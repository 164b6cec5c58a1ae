"""The routes of action=browse, and what no browser is let do: the page asks this machine alone, reads, and writes nothing."""

import ipaddress
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from peftrun.errors import ConfigError
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
PAGE = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# A report brings its own style and drawings, needs no script, and whatever is written in it runs none.
REPORT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
KINDS = {".html": "text/html", ".svg": "image/svg+xml"}


def create_app(catalogue: RunCatalog, host: str) -> Any:
    """The application that answers for a catalogue. Args: host: the name under which it is served."""
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

    app = FastAPI(title="peftrun browse", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guarded(request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
        if not is_local_host(request.headers.get("host", ""), host):
            return PlainTextResponse("this name is not that of this machine\n", 403, headers=HEADERS)
        found = await answer(request)
        for key, value in {"Content-Security-Policy": PAGE, **HEADERS}.items():
            found.headers.setdefault(key, value)
        return found

    @app.exception_handler(ConfigError)
    async def refused(_: Any, fault: ConfigError) -> Any:
        return JSONResponse({"problem": fault.lines[0]}, 400)

    @app.exception_handler(UnknownRunError)
    async def unknown(*_: Any) -> Any:
        return JSONResponse({"problem": "there is no such run any more"}, 404)

    def own(path: str) -> Callable[[], Any]:
        name, kind = FILES[path]
        return lambda: FileResponse(STATIC_DIR / name, media_type=kind)

    for path in FILES:
        app.add_api_route(path, own(path), methods=["GET"])
    _add_api_routes(app, catalogue)

    @app.get("/run/{name}/{file}")
    def of_run(name: str, file: str) -> Any:
        found = catalogue.file(name, file)
        if found is None:
            return PlainTextResponse("there is no such file\n", 404)
        return FileResponse(found, media_type=KINDS[found.suffix], headers={"Content-Security-Policy": REPORT})

    return app


def _add_api_routes(app: Any, catalogue: RunCatalog) -> None:
    from fastapi import Query

    ids: Any = Query(alias="id")

    @app.get("/api/runs")
    def runs(where: str = "", sort: str = "") -> Any:
        return catalogue.runs(where, sort or None)

    @app.get("/api/columns")
    def columns() -> Any:
        return catalogue.names()

    @app.get("/api/run/{name}")
    def run(name: str) -> Any:
        return catalogue.one(name)

    @app.get("/api/compare")
    def compare(names: list[str] = ids) -> Any:
        return catalogue.compare_runs(names)

    @app.get("/api/curves")
    def curves(names: list[str] = ids, narrow: bool = False) -> Any:
        return catalogue.curves(names[:26], narrow)

    @app.get("/api/adapters/{one}/{other}")
    def adapters(one: str, other: str) -> Any:
        return catalogue.adapters(one, other)


def is_local_host(header: str, host: str) -> bool:
    """Whether the Host of a request is this machine: an address, localhost, its name, or the name it is served under.

    A page elsewhere may let its own name lead here, and would then read what this machine answers: such a name is none of these.
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    try:
        return bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return name.lower() in {"localhost", host.lower(), platform.node().lower()} - {""}
