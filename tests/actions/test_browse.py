"""The page is served to this machine alone, says where, gives away nothing but reports, and ends when it is told to."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing

import pytest
from cases import cases
from catalogue_runs import browsing, copies
from faults import check_failed, check_refused
from test_startup import PROBE


def get(address: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}{path}", headers=headers), timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory):
    where = tmp_path_factory.mktemp("browsed")
    folders = copies(trained, where / "outputs", 4)
    (folders[0] / "report.html").write_text("<!doctype html><script>alert(1)</script>report of one")
    (folders[1] / "report.html").symlink_to("/etc/passwd")
    (where / "secret.txt").write_text("secret")
    with browsing(where) as (address, _):
        yield address, [run for run in json.loads(get(address, "api/runs?sort=date")[2])["runs"]]


@pytest.mark.slow
def test_the_page_and_its_answers_are_there(served):
    address, runs = served
    status, headers, text = get(address, "")
    assert status == 200 and "<main" in text and "script-src 'self'" in headers["content-security-policy"]
    assert len(runs) == 4 and runs[0]["report"]
    one = json.loads(get(address, f"api/run/{runs[0]['id']}")[2])
    assert (
        one["config"]["lora.r"] == 8 and one["files"] == ["report.html"] and len(one["adapter_norms"]["modules"]) == 14
    )
    pair = json.loads(get(address, f"api/compare?id={runs[0]['id']}&id={runs[1]['id']}")[2])
    assert pair["runs"] == [one["run"], pair["runs"][1]] and pair["config"] == {}
    drawn = json.loads(get(address, f"api/curves?id={runs[0]['id']}&id={runs[1]['id']}")[2])
    assert [each["name"] for each in drawn] == ["loss", "eval_loss", "learning_rate"] and "<svg xmlns=" in drawn[0][
        "svg"
    ]
    rows = json.loads(get(address, f"api/adapters/{runs[0]['id']}/{runs[1]['id']}")[2])["rows"]
    assert len(rows) == 14 and all(
        row["cosine"] == pytest.approx(1) and row["norms"][0] == row["norms"][1] > 0 for row in rows
    )
    assert "trainer.learning_rate" in json.loads(get(address, "api/columns")[2])


@pytest.mark.slow
def test_a_fault_in_what_is_asked_is_told(served):
    address, runs = served
    status, _, text = get(address, "api/runs?where=exact_mtch%3E1")
    assert (
        status == 400
        and json.loads(text)["problem"] == "where: there is no column exact_mtch; did you mean exact_match?"
    )
    assert get(address, f"api/compare?id={runs[0]['id']}")[0] == 400
    assert get(address, "api/run/0123456789abcdef")[0] == get(address, "api/compare?id=a&id=b")[0] == 404


@pytest.mark.slow
def test_a_report_is_given_and_can_do_nothing(served):
    address, runs = served
    status, headers, text = get(address, f"run/{runs[0]['id']}/report.html")
    assert status == 200 and text.endswith("report of one")
    assert "sandbox" in headers["content-security-policy"] and "script-src" not in headers["content-security-policy"]
    assert (
        headers["content-security-policy"].startswith("default-src 'none'")
        and headers["x-content-type-options"] == "nosniff"
    )


@pytest.mark.slow
@cases("path", [
        "run/{0}/record.json", "run/{0}/config.yaml", "run/{0}/../../../secret.txt", "run/{0}/..%2F..%2F..%2Fsecret.txt", "run/{0}/%2Fetc%2Fpasswd", "run/{1}/report.html",
        "run/{0}/curves.svg", "run/../secret.txt", "../secret.txt", "browse.py", "app.py", "pages.py", "docs", "openapi.json", "run/x/report.html",
    ])  # fmt: skip
def test_no_other_file_leaves_the_machine(served, path):
    address, runs = served
    host, port = address.removeprefix("http://").strip("/").split(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=30)) as connection:  # sends a path as it is
        connection.request("GET", f"/{path.format(*(run['id'] for run in runs))}")
        answer = connection.getresponse()
        text = answer.read().decode()
    assert answer.status == 404 and "secret" not in text and "root:" not in text


@pytest.mark.slow
@cases("host, status", [("127.0.0.1:1", 200), ("localhost:1", 200), ("[::1]:1", 200), ("evil.example", 403), ("evil.example:80", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example:1", 403)])  # fmt: skip
def test_another_name_that_leads_here_is_refused(served, host, status):
    address, _ = served
    for path in ("", "api/runs", "browse.js"):
        assert get(address, path, Host=host)[0] == status


@pytest.mark.slow
def test_nothing_can_be_sent(served):
    address, _ = served
    asked = urllib.request.Request(f"{address}api/runs", data=b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=30)
    assert caught.value.code == 405


@pytest.mark.slow
@cases("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_told_to_and_nothing_heavy_was_imported(trained, tmp_path, number):
    copies(trained, tmp_path / "outputs", 2)
    with browsing(tmp_path) as (address, done):
        runs = json.loads(get(address, "api/runs")[2])["runs"]
        get(address, f"api/adapters/{runs[0]['id']}/{runs[1]['id']}")
        done.send_signal(number)
        said = done.communicate(timeout=30)[1]
    assert done.returncode == 0 and "Traceback" not in said and "HEAVY []" in said, said
    (record,) = tmp_path.glob("outputs/browse/*/record.json")
    found = json.loads(record.read_text())
    assert found["status"] == "completed" and found["browsed"]["address"] == address


def test_a_condition_that_cannot_be_met_is_told_before_anything_is_served(cli, trained, tmp_path):
    copies(trained, tmp_path / "outputs", 1)
    check_failed(cli, tmp_path, ["action=browse", "where=exact_mtch>1", "port=0"], ["there is no column exact_mtch"])


def test_an_address_that_is_taken_is_one_line(cli, tmp_path):
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        check_failed(
            cli,
            tmp_path,
            ["action=browse", f"port={port}"],
            [f"action.port={port}: cannot be had", "type action.port=0"],
        )
    check_failed(cli, tmp_path, ["action=browse", "host=203.0.113.7", "port=0"], ["action.host=203.0.113.7"])
    check_failed(
        cli, tmp_path, ["action=browse", "host=no.such.host.invalid", "port=0"], ["action.host=no.such.host.invalid"]
    )


def test_without_a_server_to_be_had_one_line_says_what_to_install(trained, tmp_path):
    """In an interpreter that finds no fastapi."""
    hidden = f"import sys; sys.modules['fastapi'] = None\n{PROBE}"
    done = subprocess.run([sys.executable, "-c", hidden, "action=browse"], cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1 and "pip install 'peftrun[serve]'" in done.stderr and "Traceback" not in done.stderr


def test_roots_that_are_not_there_are_refused(cli, tmp_path):
    check_refused(cli, tmp_path, ["action=browse", "dirs=[nowhere]"], ["action.dirs: there is no folder nowhere"])


@pytest.mark.slow
def test_the_page_may_begin_with_a_filter(cli, trained, tmp_path):
    copies(trained, tmp_path / "outputs", 1)
    with browsing(tmp_path, "where=task=instruction and lora.r>=8") as (address, _):
        assert address.endswith("/#/?where=task%3Dinstruction+and+lora.r%3E%3D8")
        assert get(address.partition("#")[0], "api/runs")[0] == 200
    check_refused(cli, tmp_path, ["action=browse", "where=task"], ["action.where: after task one of"])


@pytest.mark.slow
@cases("host, warned", [("0.0.0.0", True), ("127.0.0.1", False), ("127.0.0.2", False)])
def test_who_can_see_the_runs_is_told_where_others_can(trained, tmp_path, host, warned):
    copies(trained, tmp_path / "outputs", 1)
    with browsing(tmp_path, f"action.host={host}") as (_, done):
        done.send_signal(signal.SIGINT)
        err = done.stderr.read()
    assert ("anyone who can reach this address sees these runs" in err) == warned
