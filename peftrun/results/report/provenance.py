"""What a record proves, and what the run stood on. Light."""

import shlex
from collections.abc import Iterator
from html import escape
from typing import Any

from peftrun.artifacts import run_overrides
from peftrun.artifacts.run_layout import ADAPTER, RECORD
from peftrun.console import shorten_path
from peftrun.formatting import format_count
from peftrun.results.report import html
from peftrun.results.report.run_facts import RunFacts, get_list, get_mapping


def render_provenance(run: RunFacts) -> Iterator[str]:
    """Digests of what was read and written, and what they do and do not prove."""
    if not run.record:
        return
    yield "<h2>Integrity</h2><ul>"
    yield from (f"<li>{escape(line)}</li>" for line in _list_claims(run))
    yield "</ul>"
    files = run.record.get("artifacts")
    if isinstance(files, dict) and files:
        rows = [[f"<td><code>{escape(str(name))}</code></td>", _render_digest(one)] for name, one in files.items()]
        yield html.render_table("Files", ["file as it was saved", "sha256"], rows)
    read = _build_input_rows(run)
    if read:
        yield html.render_table("Inputs", ["what it was made of", "sha256"], read)
    if (run.folder / ADAPTER).is_dir():
        yield "<p>To prove that the saved adapter loads and answers as it did when it was saved:</p>"
        yield html.render_command(_build_reload_command(run))


def _build_reload_command(run: RunFacts) -> str:
    """On the same base, with the same rows."""
    spread = get_mapping(run.values, "device").get("strategy") is not None
    typed = run_overrides.strip_process_overrides(run.typed) if spread else run.typed
    return run_overrides.add_shared_overrides(
        f"peftrun action=reload adapter={shlex.quote(shorten_path(run.folder))}", typed, run.places
    )


def _list_claims(run: RunFacts) -> Iterator[str]:
    rows = get_mapping(run.record, "data").get("held_out_rows")
    if run.before and run.after:
        yield f"Measured here: the same {rows} held-out rows before and after training, by the same code in one process."
    elif run.after:
        yield f"Measured here: {rows} held-out rows, after training alone. How the base does on them was not measured."
    if run.record.get("artifacts"):
        yield "Every saved file has the digest below; each base has a fingerprint of its own, and an adapter is refused on another one."
        yield "Not shown here: that the adapter loads elsewhere, or that a merged model answers alike. Reload and merge prove that, in records of their own."
    if run.status != "completed":
        yield f"This run is {run.status}: what came after the last logged step is not known."
    if computing := get_mapping(run.record, "computing"):
        inexact = get_list(computing, "not_deterministic")
        told = (
            f"not deterministic: {', '.join(map(str, inexact))}"
            if inexact
            else "nothing was found that is not deterministic"
        )
        yield f"Computed on {format_count(computing.get('threads'), 'thread')}; {told}."


def _build_input_rows(run: RunFacts) -> list[list[str]]:
    fingerprint = get_mapping(run.record, "base.fingerprint")
    known = {f"base {run.base}: {name.replace('_', ' ')}": value for name, value in fingerprint.items()}
    known |= {"rows": get_mapping(run.record, "data").get("digest")}
    known |= {f"given adapter {name}": value for name, value in get_mapping(run.record, "given").items()}
    return [[html.render_cell(name), _render_digest(value)] for name, value in known.items() if value]


def _render_digest(value: Any) -> str:
    return f'<td class="digest"><code>{escape(str(value))}</code></td>'


def render_environment(run: RunFacts) -> Iterator[str]:
    """Versions and hardware, folded away."""
    record, environment = run.record, get_mapping(run.record, "environment")
    versions = get_mapping(record, "versions")
    if not versions and not environment:
        return
    settings = ", ".join(f"{name}={value}" for name, value in get_mapping(environment, "settings").items())
    cpu = get_mapping(environment, "cpu")
    known = {
        "Device": record.get("device"),
        "Processor": cpu.get("model"),
        "Cores": environment.get("cores"),
        "GPUs": ", ".join(map(str, get_list(environment, "gpus"))),
        "Driver": environment.get("driver"),
        "Platform": record.get("platform"),
        "Settings": settings,
        "Versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "Source of peftrun": get_mapping(environment, "code").get("sha256"),
        "Git commit": record.get("git_commit"),
        "Command": shlex.join(map(str, get_list(record, "command"))),
        "All packages": f"{len(packages)}, in {RECORD}" if (packages := get_mapping(environment, "packages")) else None,
    }
    yield f"<h2>What it stood on</h2>{html.render_details('Versions and hardware', html.render_definitions(known))}"
