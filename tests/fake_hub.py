"""A Hub on this machine: what `huggingface_hub` asks when it makes a repository and a commit, and what was sent, byte by byte."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import local_server

TOKEN = "hf_of_the_test"
COMMIT = "a" * 40


@dataclass
class Hub:
    """`repos`: name → what it was made with. `files`: path → bytes of the last commit. `asked`: every request."""

    address: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    history: list[dict[str, bytes]] = field(default_factory=list)  # the files after each commit
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by sha256, before a commit names them
    cards: list[str] = field(default_factory=list)  # model cards that were sent to be looked at
    asked: list[str] = field(default_factory=list)
    refuses: int | None = None  # an HTTP status, to whatever is asked
    refuses_commits: bool = False


@contextmanager
def running() -> Iterator[Hub]:
    """The Hub, on a free port of this machine, until the block ends."""
    hub = Hub()
    with local_server.serve(_handler(hub)) as server:
        hub.address = local_server.get_address(server)
        yield hub


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hub.asked.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.refuses or self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(hub.refuses or 401, {"error": "no"})
            if hub.refuses_commits and "/commit/" in self.path:
                return self._answer(403, {"error": "no more space"})
            return self._answer(200, _answered(hub, self.path, body))

        def do_PUT(self) -> None:
            hub.asked.append(f"PUT {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            digest = self.path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == digest
            hub.stored[digest] = body
            self._answer(200, {})

        def do_GET(self) -> None:
            hub.asked.append(f"GET {self.path}")
            if "/tree/main" not in self.path:
                return self._answer(404, {"error": "not found"})
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in hub.files.items()
            ]
            return self._answer(200, entries)

        def _answer(self, status: int, value: Any) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _answered(hub: Hub, path: str, body: bytes) -> Any:
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        hub.repos[name] = asked
        return {"url": f"{hub.address}/{name}", "name": name}
    if path == "/api/validate-yaml":
        hub.cards.append(json.loads(body)["content"])
        return {"errors": [], "warnings": []}
    if "/preupload/" in path:
        files = json.loads(body)["files"]
        modes = [(one["path"], "lfs" if one["path"].endswith(".safetensors") else "regular") for one in files]
        return {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]}
    if path.endswith("/objects/batch"):
        asked = json.loads(body)["objects"]
        links = [{**one, "actions": {"upload": {"href": f"{hub.address}/stored/{one['oid']}"}}} for one in asked]
        return {"transfer": "basic", "objects": links}
    assert path.startswith("/api/models/") and path.endswith("/commit/main"), path
    name = path.removeprefix("/api/models/").removesuffix("/commit/main")
    assert name in hub.repos
    return _committed(hub, name, [json.loads(line) for line in body.splitlines()])


def _committed(hub: Hub, name: str, lines: list[dict[str, Any]]) -> dict[str, str]:
    for line in lines:
        value = line["value"]
        if line["key"] == "header":
            hub.commits.append(value["summary"])
        elif line["key"] == "file":
            hub.files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "deletedFile":
            del hub.files[value["path"]]
        else:
            assert line["key"] == "lfsFile", line
            hub.files[value["path"]] = hub.stored[value["oid"]]
    hub.history.append(dict(hub.files))
    return {"commitUrl": f"{hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
