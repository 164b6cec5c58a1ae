"""A small client of yaml-language-server, the one behind VS Code and Neovim: opens a file, and asks what an editor asks."""

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

SETTINGS = {"yaml": {"validate": True, "hover": True, "completion": True, "schemaStore": {"enable": False}}}
CAPABILITIES = {"textDocument": {"hover": {"contentFormat": ["markdown"]}}}


class LanguageServer:
    """A running server. `diagnostics`: file → what it underlines."""

    def __init__(self) -> None:
        command = ["yaml-language-server", "--stdio"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.numbers = itertools.count(1)
        self.diagnostics: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> "LanguageServer":
        self._request("initialize", {"processId": None, "rootUri": None, "capabilities": CAPABILITIES})
        self._send({"method": "initialized", "params": {}})
        self._send({"method": "workspace/didChangeConfiguration", "params": {"settings": SETTINGS}})
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def open(self, path: Path, text: str) -> str:
        """Opens a file with a text; returns its name, once the server has judged it."""
        path.write_text(text)
        document = {"uri": path.as_uri(), "languageId": "yaml", "version": 1, "text": text}
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        while path.as_uri() not in self.diagnostics:
            self._read()
        return path.as_uri()

    def ask(self, method: str, uri: str, line: int, character: int) -> Any:
        """The server's answer about a place in a file, such as to `textDocument/hover`."""
        place = {"textDocument": {"uri": uri}, "position": {"line": line, "character": character}}
        return self._request(method, place)

    def _request(self, method: str, params: dict[str, Any]) -> Any:
        number = next(self.numbers)
        self._send({"id": number, "method": method, "params": params})
        while True:
            message = self._read()
            if message.get("id") == number and "method" not in message:
                return message["result"]

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        length = 0
        while line := self.process.stdout.readline().strip():
            if line.lower().startswith(b"content-length"):
                length = int(line.partition(b":")[2])
        message = json.loads(self.process.stdout.read(length))
        if message.get("method") == "textDocument/publishDiagnostics":
            self.diagnostics[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif "method" in message and "id" in message:
            self._send({"id": message["id"], "result": None})
        return message
