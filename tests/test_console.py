"""What a run says while it takes its time, and how it ends where the program is at fault."""

import time

from peftrun import console
from peftrun.cli import BUG


def test_a_long_silence_is_broken_by_what_the_run_is_at(capfd, monkeypatch):
    monkeypatch.setattr(console, "LONGEST_SILENCE", 0.5)
    with console.never_silent():
        console.doing("measuring 7 rows")
        time.sleep(1.3)
    first = capfd.readouterr().err
    assert first.startswith("measuring 7 rows ... ") and first.endswith(" s\n")
    time.sleep(1.2)
    assert capfd.readouterr().err == ""  # it ends with the run


def test_who_speaks_is_not_interrupted(capfd, monkeypatch):
    monkeypatch.setattr(console, "LONGEST_SILENCE", 30.0)
    with console.never_silent():
        console.say("loading")
        time.sleep(1.2)
    assert capfd.readouterr().err == "loading\n"


def test_a_bug_keeps_its_traceback_and_has_an_exit_code_of_its_own(cli, monkeypatch):
    def broken(argv):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("peftrun.jobs.run", broken)
    outcome = cli("action=reload")
    assert outcome.code == BUG != 1 and "Traceback" in outcome.err and "ZeroDivisionError: a bug" in outcome.err
