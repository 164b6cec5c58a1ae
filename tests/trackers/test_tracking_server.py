"""A tracking server that is not there is refused at once; one that goes away costs one warning; nothing else is ever asked for."""

import json
import socket
from http.server import BaseHTTPRequestHandler

import local_server
import pytest
from conftest import TINY_STEPS, cli_here

pytestmark = pytest.mark.slow

ANSWERS = {  # of MLflow's REST interface, as much as a run asks for
    "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "peftrun"}},
    "runs/create": {"run": {"info": {"run_id": "a1", "run_uuid": "a1", "experiment_id": "1", "status": "RUNNING"}, "data": {}}},
    "runs/log-batch": {},
}  # fmt: skip


@pytest.fixture
def server():
    """Serves MLflow's REST interface on this machine; `asked`: (what, body). It goes away when figures were told twice."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.partition("mlflow/")[2].partition("?")[0]
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            gone = sum("metrics" in one for _, one in asked) >= 2
            asked.append((name, body))
            text = json.dumps(
                {"error_code": "INTERNAL_ERROR", "message": "gone"} if gone else ANSWERS.get(name, {})
            ).encode()
            self.send_response(500 if gone else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with local_server.serve(Handler) as http:
        http.asked = asked
        yield http


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_server_that_goes_away_costs_one_warning(tmp_path, llama, on_tiny, server):
    run = cli_here(
        tmp_path, *on_tiny(llama), *TINY_STEPS, "tracker=mlflow", f"tracker.uri={local_server.get_address(server)}"
    )
    assert run.code == 0, run.err
    warned = [line for line in run.err.splitlines() if line.startswith("warning: tracker")]
    assert len(warned) == 1 and "the run goes on without it" in warned[0], run.err
    rows = (run.run_dir / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 4 and run.record()["status"] == "completed"
    told = [body["metrics"] for _, body in server.asked if "metrics" in body]
    assert [{one["step"] for one in each} for each in told[:2]] == [{1}, {2}]


def test_a_server_that_is_not_there_is_refused_before_the_model_is_loaded(tmp_path, llama, on_tiny):
    where = f"http://127.0.0.1:{free_port()}"
    run = cli_here(tmp_path, *on_tiny(llama), *TINY_STEPS, "tracker=mlflow", f"tracker.uri={where}")
    assert run.code == 1 and run.run_dir is None
    (line,) = [line for line in run.err.splitlines() if line.startswith("peftrun: ")]
    assert f"tracker.uri={where}" in line and "type tracker.uri=null" in line
    assert "cannot be reached (Connection refused); fix" in line
    assert "data:" not in run.err


def test_nothing_is_asked_of_the_network(tmp_path, monkeypatch, llama, on_tiny):
    """Beyond what the run asks for without a tracker; with a Hub token that a library might ask about.

    (Weights & Biases writes from a process of its own, which is told mode=offline.)
    """
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    reached = []

    def watch(self, where):
        reached.append(where)
        raise ConnectionRefusedError(where)

    monkeypatch.setattr(socket.socket, "connect", watch)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **_: reached.append(given[0]) or [])
    counted = {}
    for kind in ("none", "none", "tensorboard", "trackio", "mlflow"):
        reached.clear()
        run = cli_here(tmp_path, *on_tiny(llama), *TINY_STEPS, f"tracker={kind}")
        assert run.code == 0, run.err
        counted[kind] = list(reached)
    assert all(asked == counted["none"] for asked in counted.values()), counted
