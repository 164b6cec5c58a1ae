"""The adapters that an adapter was trained from: recorded whole with each, so that they are known where their folders are gone. Light."""

from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder, records
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.portable_names import shorten_path
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

MAX_ANCESTORS = 50  # recorded with an adapter: more say nothing that is read
DIGEST = 12  # digits of a sha256 that are shown
Ancestor = dict[str, Any]


def describe_parent(adapter: AdapterRef) -> Ancestor:
    """What is recorded of the adapter that a training starts from: hash, run, steps, rows, and its own ancestors, nearest first."""
    run, metadata = adapter_folder.find_adapter_run(adapter.path), adapter.metadata or {}
    parent = {
        "sha256": atomic_files.hash_file(adapter.weights),
        "run": _name_run(adapter, run),
        "steps": _read_steps(adapter.folder, run),
        **({"trained_on": metadata["trained_on"]} if metadata.get("trained_on") else {}),
    }
    return parent | {"parents": list_ancestors(metadata)[:MAX_ANCESTORS]}


def find_cycle(adapter: AdapterRef) -> Ancestor | None:
    """An ancestor that stands in the adapter's lineage twice, or is the adapter itself: no training writes that. None: there is none.

    A training of no steps has its parent's bytes, and may have its name in another folder.
    """
    run = adapter_folder.find_adapter_run(adapter.path)
    name = _name_run(adapter, run)
    ancestors = [ancestor for ancestor in list_ancestors(adapter.metadata or {}) if ancestor.get("steps") != 0]
    known: list[tuple[Any, str]] = []
    shares_name = any(ancestor.get("run") == name for ancestor in ancestors)  # it may still be another run
    if shares_name and _read_steps(adapter.folder, run) != 0:
        known = [(name, atomic_files.hash_file(adapter.weights))]
    for ancestor in ancestors:
        identity = (ancestor.get("run"), ancestor["sha256"])
        if identity in known:
            return ancestor
        known.append(identity)
    return None


def _name_run(adapter: AdapterRef, run: Path | None) -> str:
    """The adapter's run, or its folder if it is in none; without a path of this machine, since adapters are passed on."""
    return shorten_path(str(run or adapter.path))


def _read_steps(folder: Path, run: Path | None) -> int | None:
    """Optimizer steps of that run alone: of a checkpoint its own number."""
    number = folder.name.removeprefix("checkpoint-")
    if number.isdigit() and number != folder.name:
        return int(number)
    try:
        return (records.read_record(run).get("training") or {}).get("steps") if run else None
    except ArtifactError:
        return None


def list_ancestors(facts: dict[str, Any]) -> list[Ancestor]:
    """The ancestors in a record.json or peftrun.json, nearest first; entries that are none are left out."""
    parent = facts.get("parent")
    if not isinstance(parent, dict):
        return []
    others = parent.get("parents")
    chain = [parent, *(others if isinstance(others, list) else [])]
    own = ({key: value for key, value in one.items() if key != "parents"} for one in chain if isinstance(one, dict))
    return [one for one in own if isinstance(one.get("sha256"), str)][: MAX_ANCESTORS + 1]


def format_ancestor(ancestor: Ancestor) -> str:
    """`RUN (60 steps on sms-spam.csv, sha256 1a2b…)`."""
    steps, rows = ancestor.get("steps"), ancestor.get("trained_on")
    taken = f"{steps} steps{f' on {rows}' if rows else ''}, " if isinstance(steps, int) else ""
    return f"{ancestor.get('run')} ({taken}sha256 {ancestor['sha256'][:DIGEST]})"


def format_chain(facts: dict[str, Any]) -> str:
    """All ancestors on one line, nearest first; empty if there are none."""
    return " ← ".join(map(format_ancestor, list_ancestors(facts)))


def format_runs(facts: dict[str, Any]) -> str | None:
    """The runs of all ancestors, nearest first; None if there are none."""
    return " ← ".join(str(ancestor.get("run")) for ancestor in list_ancestors(facts)) or None


def summarize(facts: dict[str, Any], *, is_stacked: bool) -> list[tuple[str, str]]:
    """Rows for the summary of a training: the adapters that it started from or on top of, and its reference model."""
    rows = [("stacked on" if is_stacked else "continued", chain)] if (chain := format_chain(facts)) else []
    if reference := facts.get("reference"):
        is_parent = reference["model"] == "parent"
        rows.append(
            ("reference model", "the adapter that it started from, as it was" if is_parent else "the base model")
        )
    return rows
