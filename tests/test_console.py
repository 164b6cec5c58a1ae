"""What a run says while it takes its time."""

import time

from peftrun import console


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
