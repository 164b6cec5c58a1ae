"""What a run would stand on if it began now, as its record would tell it; nothing is trained, no weight is loaded."""

import platform
from importlib import import_module
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import source_run
from peftrun.config.schema.run import RunSpec, needs_processes
from peftrun.errors import PeftrunError
from peftrun.system import environment
from peftrun.system.versions import collect_versions

GONE = "cannot be read"


def collect_facts(spec: RunSpec, then: dict[str, Any]) -> dict[str, Any]:
    """Those facts of a record that inputs are compared by. `then`: the older record; what it does not hold is not looked for."""
    found = {
        "environment": environment.describe_environment(),
        "versions": collect_versions(),
        "platform": platform.platform(),
        "git_commit": environment.get_git_commit(Path()),
        "given": source_run.hash_input_adapters(spec.adapter),
        "files": source_run.hash_input_files(spec),
        "computing": None if needs_processes(spec) or "computing" not in then else _describe_numerics(spec),
    }
    tokens = {part: _fingerprint_base(spec, part) for part in ("base", "merged") if then.get(part)}
    found |= tokens
    return found | ({"data": _describe_data(spec)} if then.get("data") else {})


def _describe_numerics(spec: RunSpec) -> dict[str, Any] | None:
    """None where the device is not there; what is installed and the machine tell why."""
    try:
        import_module("peftrun.models.device").resolve_device(spec.device)
    except PeftrunError as fault:
        console.print_warning(fault.lines[0])
        return None
    found: dict[str, Any] | None = import_module("peftrun.system.determinism").describe_determinism()
    return found


def _fingerprint_base(spec: RunSpec, part: str) -> dict[str, Any]:
    model, fingerprint = import_module("peftrun.models.base"), import_module("peftrun.artifacts.fingerprint")
    try:
        return {"fingerprint": fingerprint.fingerprint_model(model.resolve_base_dir(spec.model)).as_dict()}
    except PeftrunError as fault:
        console.print_warning(f"{part}: {fault.lines[0]}")
        return {"fingerprint": {"weights": GONE}}


def _describe_data(spec: RunSpec) -> dict[str, Any]:
    model, texts = import_module("peftrun.models.base"), import_module("peftrun.models.tokenizer")
    tasks, prepared = import_module("peftrun.tasks"), import_module("peftrun.tasks.row_cache")
    try:
        tokenizer = texts.load_tokenizer(model.resolve_base_dir(spec.model), spec.model)
        described: dict[str, Any] = prepared.load_cached_rows(
            tasks.import_task_module(spec.task.kind), spec.task, tokenizer
        ).describe()
        return described
    except (PeftrunError, OSError, ValueError) as fault:
        console.print_warning(f"data: {str(fault).splitlines()[0]}")
        return {"digest": GONE}
