"""Provenance of a run: digests and what they prove, versions and hardware. Light."""

import shlex
from collections.abc import Iterator
from html import escape
from typing import Any

from peftrun.artifacts import lineage, run_overrides
from peftrun.artifacts.run_layout import ADAPTER, RECORD
from peftrun.console import shorten_path
from peftrun.formatting import format_count
from peftrun.results.report import html
from peftrun.results.report.run_facts import RunFacts, get_list, get_mapping


def render_provenance(run: RunFacts) -> Iterator[str]:
    """Digests of the files read and written, and what they do and do not prove."""
    if not run.record:
        return
    yield "<h2>Integrity</h2><ul>"
    yield from (f"<li>{escape(line)}</li>" for line in _list_claims(run))
    yield "</ul>"
    files = run.record.get("artifacts")
    if isinstance(files, dict) and files:
        outputs = [
            [f"<td><code>{escape(str(name))}</code></td>", _render_digest(digest)] for name, digest in files.items()
        ]
        yield html.render_table("Files", ["file as saved", "sha256"], outputs)
    fingerprint = get_mapping(run.record, "base.fingerprint")
    digests = {f"base {run.base}: {name.replace('_', ' ')}": digest for name, digest in fingerprint.items()}
    digests |= {"rows": get_mapping(run.record, "data").get("digest")}
    digests |= {f"input adapter {name}": digest for name, digest in get_mapping(run.record, "input_adapters").items()}
    inputs = [[html.render_cell(name), _render_digest(digest)] for name, digest in digests.items() if digest]
    if inputs:
        yield html.render_table("Inputs", ["input", "sha256"], inputs)
    if (run.folder / ADAPTER).is_dir():
        yield "<p>To prove that the saved adapter loads and gives the same output as when it was saved:</p>"
        # With the run's base model and rows, but in one process, also if the run had several.
        is_distributed = get_mapping(run.values, "device").get("strategy") is not None
        overrides = run_overrides.strip_process_overrides(run.typed) if is_distributed else run.typed
        command = f"peftrun action=reload adapter={shlex.quote(shorten_path(run.folder))}"
        yield html.render_command(run_overrides.add_shared_overrides(command, overrides, run.places))


def _list_claims(run: RunFacts) -> Iterator[str]:
    rows = get_mapping(run.record, "data").get("held_out_rows")
    if chain := lineage.format_chain(run.record):
        yield f"Continues an adapter: {chain}. What is measured before training is that adapter, not the base model."
    if run.before and run.after:
        yield f"Measured here: the same {rows} evaluation rows before and after training, by the same code in one process."
    elif run.after:
        yield f"Measured here: {rows} evaluation rows, after training only. The base model was not measured on them."
    if run.record.get("artifacts"):
        yield "Every saved file has the digest below. The adapter is bound to the fingerprint of its base model and refused on another one."
        yield "Not shown here: that the adapter loads elsewhere, or that a merged model gives the same output. Reload and merge prove that, in records of their own."
    if run.status != "completed":
        yield f"This run is {run.status}: nothing is known of what came after the last logged step."
    if numerics := get_mapping(run.record, "numerics"):
        nondeterministic_ops = get_list(numerics, "not_deterministic")
        determinism = (
            f"not deterministic: {', '.join(map(str, nondeterministic_ops))}"
            if nondeterministic_ops
            else "no nondeterministic operation found"
        )
        yield f"Computed on {format_count(numerics.get('threads'), 'thread')}; {determinism}."


def _render_digest(digest: Any) -> str:
    return f'<td class="digest"><code>{escape(str(digest))}</code></td>'


def render_environment(run: RunFacts) -> Iterator[str]:
    """Versions and hardware, folded."""
    record, environment = run.record, get_mapping(run.record, "environment")
    versions = get_mapping(record, "versions")
    if not versions and not environment:
        return
    settings = ", ".join(f"{name}={value}" for name, value in get_mapping(environment, "settings").items())
    cpu = get_mapping(environment, "cpu")
    definitions = {
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
    yield f"<h2>Environment</h2>{html.render_details('Versions and hardware', html.render_definitions(definitions))}"
