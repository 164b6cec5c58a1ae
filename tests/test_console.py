"""What a run says while it takes its time, and how it ends where the program is at fault."""

import time

from peftrun import console
from peftrun.cli.main import BUG


def test_a_long_silence_is_broken_by_what_the_run_is_at(capfd, monkeypatch):
    monkeypatch.setattr(console, "LONGEST_SILENCE", 0.5)
    with console.print_heartbeats():
        console.set_activity("measuring 7 rows")
        time.sleep(1.3)
    first = capfd.readouterr().err
    assert first.startswith("measuring 7 rows ... ") and first.endswith(" s\n")
    time.sleep(1.2)
    assert capfd.readouterr().err == ""  # it ends with the run


def test_who_speaks_is_not_interrupted(capfd, monkeypatch):
    monkeypatch.setattr(console, "LONGEST_SILENCE", 30.0)
    with console.print_heartbeats():
        console.print_info("loading")
        time.sleep(1.2)
    assert capfd.readouterr().err == "loading\n"


def test_steps_are_told_between_logs_and_a_bar_stays_below_what_is_said(capfd, monkeypatch):
    from types import SimpleNamespace

    from rich.console import Console

    from peftrun.training.callbacks import MetricsCallback

    monkeypatch.setattr(console, "LONGEST_SILENCE", 0.5)
    report = MetricsCallback(None, {})
    with console.print_heartbeats():
        for step in range(6):  # steps faster than the silence, and no log among them
            report.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=60), None)
            time.sleep(0.3)
    assert "step 4/60 ... 0 s\n" in capfd.readouterr().err
    monkeypatch.setattr(console, "_get_stderr_console", lambda: Console(force_terminal=True, stderr=True))
    bar = console.create_progress_bar()
    monkeypatch.undo()
    bar.add_task("training", total=3, note="")
    with bar:
        console.print_info("held-out after")
        assert console.is_terminal()
    shown = capfd.readouterr().err
    assert shown.index("held-out after") < shown.rindex("training") and not console.is_terminal()


def test_a_bug_keeps_its_traceback_and_has_an_exit_code_of_its_own(cli, monkeypatch):
    def broken(argv):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("peftrun.cli.hydra_app.run_command_line", broken)
    outcome = cli("action=reload")
    assert outcome.code == BUG != 1 and "Traceback" in outcome.err and "ZeroDivisionError: a bug" in outcome.err
