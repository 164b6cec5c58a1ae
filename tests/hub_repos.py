"""A Hub on this machine to download from: repositories of models and adapters at commits, branches and tags; and who asked for what."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

import local_server
import pytest
from huggingface_hub import constants

Files = dict[str, bytes]


@dataclass
class Repositories:
    """`commits`: ORG/NAME → commit → path → bytes. `refs`: ORG/NAME → branch or tag → commit. `refused`: ORG/NAME → (status, code).

    `asked`: every request.
    """

    address: str = ""
    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def commit(self, repo: str, files: Files | Path, *refs: str) -> str:
        """A new commit of these files, or of those in a folder, which the branches and tags `refs` then name."""
        if isinstance(files, Path):
            files = {str(file.relative_to(files)): file.read_bytes() for file in files.rglob("*") if file.is_file()}
        commits = self.commits.setdefault(repo, {})
        name = sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits[name] = files
        self.refs.setdefault(repo, {}).update(dict.fromkeys(refs or ("main",), name))
        return name

    def downloaded(self) -> list[str]:
        """Paths of the files that were downloaded, sorted."""
        return sorted({text.partition("/resolve/")[2].partition("/")[2] for text in self.asked if text.startswith("GET") and "/resolve/" in text})  # fmt: skip


@contextmanager
def serving(cache: Path) -> Iterator[Repositories]:
    """The Hub, for huggingface_hub in this process, with the local cache `cache`, until the block ends."""
    hub = Repositories()
    with local_server.serve(_handler(hub)) as server, pytest.MonkeyPatch.context() as patch:
        hub.address = local_server.get_address(server)
        for name, value in {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(cache),
        }.items():
            patch.setattr(constants, name, value)
        patch.setenv("HF_HUB_CACHE", str(cache))
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def _handler(hub: Repositories) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            status, headers, content = _respond(hub, path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _respond(hub: Repositories, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    words = path.removeprefix("/api/models").strip("/").split("/")
    repo, kind, rest = "/".join(words[:2]), words[2] if words[2:] else "revision", words[3:] or ["main"]
    if repo in hub.refused or repo not in hub.commits:
        status, code = hub.refused.get(repo, (404, "RepoNotFound"))
        return status, {"X-Error-Code": code, "X-Error-Message": "no"}, b"{}"
    refs = {**hub.refs[repo], **{commit: commit for commit in hub.commits[repo]}}
    name = next((name for name in sorted(refs, key=len, reverse=True) if "/".join(rest).startswith(name)), None)
    if name is None:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    commit, file = refs[name], "/".join(rest)[len(name) + 1 :]
    files = hub.commits[repo][commit]
    if kind == "revision":
        return 200, {}, json.dumps({"id": repo, "sha": commit, "siblings": []}).encode()
    if kind == "tree":
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": sha1(content).hexdigest()}
            for path, content in files.items()
        ]
        return 200, {}, json.dumps(entries).encode()
    if file not in files:
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
    return 200, {"ETag": f'"{sha1(files[file]).hexdigest()}"', "X-Repo-Commit": commit}, files[file]
