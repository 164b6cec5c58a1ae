"""What every refusal must look like: exit code 1, a line for each problem, no traceback, nothing half-written."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from conftest import Outcome

FINISHED = {"adapter", "merged", "model"}  # what only a run that went well may leave
Fragments = Sequence[str]


def snapshot(folder: Path) -> dict[str, str]:
    """Every folder and file below, with the digest of what it holds."""
    found = sorted(folder.rglob("*"))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in found}


def fill(items: Sequence[str], **paths: object) -> list[str]:
    """`items` with names in capitals, such as TRAINED, replaced by what they stand for."""
    for name, value in paths.items():
        items = [item.replace(name.upper(), str(value)) for item in items]
    return list(items)


def instead(base: Sequence[str], row: Sequence[str]) -> list[str]:
    """Overrides of a run that works, but for those that `row` sets otherwise; then `row`."""
    keys = [item.split("=", 1)[0] for item in row]
    kept = [item for item in base if not any(f"{item.split('=', 1)[0]}.".startswith(f"{key}.") for key in keys)]
    return [*kept, *row]


def check_told(outcome: Outcome, problems: Sequence[Fragments]) -> None:
    """One line for each problem, which holds all its fragments; no other line of ours, and no traceback."""
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err and "Logging error" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("peftrun: ")]
    assert len(lines) == len(problems), outcome.err
    for fragments in problems:
        assert any(all(part in line for part in fragments) for line in lines), (fragments, lines)


def check_refused(cli: Callable[..., Outcome], where: Path, args: Sequence[str], *problems: Fragments) -> None:
    """Found before the run starts: not one file or folder differs afterwards."""
    before = snapshot(where)
    outcome = cli(*args)
    check_told(outcome, problems)
    assert snapshot(where) == before


def check_failed(cli: Callable[..., Outcome], where: Path, args: Sequence[str], *problems: Fragments) -> Outcome:
    """Found after the run has started: nothing else differs but its run folder, whose record says why, and which is gone if it did nothing."""
    before = snapshot(where)
    outcome = cli(*args)
    check_told(outcome, problems)
    if outcome.run_dir is not None:
        check_recorded(outcome, problems)
    outputs = str(where / "outputs")
    after = {
        path: content for path, content in snapshot(where).items() if path in before or not path.startswith(outputs)
    }
    assert after == before
    return outcome


def check_recorded(outcome: Outcome, problems: Sequence[Fragments]) -> None:
    """A failed run's record holds the reason, and its folder holds no product and no temporary file."""
    record = outcome.record()
    assert record["status"] == "failed"
    assert all(part in record["error"] for fragments in problems for part in fragments), record["error"]
    assert outcome.run_dir is not None
    assert not {path.name for path in outcome.run_dir.iterdir()} & FINISHED
    assert not list(outcome.run_dir.rglob("*.tmp")) + list(outcome.run_dir.rglob(".*.tmp"))
