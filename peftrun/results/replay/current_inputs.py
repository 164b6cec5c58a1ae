"""Inputs that a run would have if it started now, in the form of its record; trains nothing, loads no weights."""

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
    """The facts of a record by which inputs are compared. `then`: the older record; what it does not hold is not computed."""
    facts = {
        "environment": environment.describe_environment(),
        "versions": collect_versions(),
        "platform": platform.platform(),
        "git_commit": environment.get_git_commit(Path()),
        "given": source_run.hash_input_adapters(spec.adapter),
        "files": source_run.hash_input_files(spec),
        "computing": None if needs_processes(spec) or "computing" not in then else _describe_numerics(spec),
    }
    # A record has `merged` in place of `base` if the run undid a merge.
    facts |= {key: _fingerprint_base(spec, key) for key in ("base", "merged") if then.get(key)}
    return facts | ({"data": _describe_data(spec)} if then.get("data") else {})


def _describe_numerics(spec: RunSpec) -> dict[str, Any] | None:
    """None if the device is not available; versions and machine then say why."""
    try:
        import_module("peftrun.models.device").resolve_device(spec.device)
    except PeftrunError as fault:
        console.print_warning(fault.lines[0])
        return None
    # The modules below are imported by name since they import torch, which a check of other inputs does not need.
    numerics: dict[str, Any] | None = import_module("peftrun.system.determinism").describe_determinism()
    return numerics


def _fingerprint_base(spec: RunSpec, key: str) -> dict[str, Any]:
    base, fingerprint = import_module("peftrun.models.base"), import_module("peftrun.artifacts.fingerprint")
    try:
        return {"fingerprint": fingerprint.fingerprint_model(base.resolve_base_dir(spec.model)).as_dict()}
    except PeftrunError as fault:
        console.print_warning(f"{key}: {fault.lines[0]}")
        return {"fingerprint": {"weights": GONE}}


def _describe_data(spec: RunSpec) -> dict[str, Any]:
    base, tokenizers = import_module("peftrun.models.base"), import_module("peftrun.models.tokenizer")
    tasks, row_cache = import_module("peftrun.tasks"), import_module("peftrun.tasks.row_cache")
    try:
        tokenizer = tokenizers.load_tokenizer(base.resolve_base_dir(spec.model), spec.model)
        rows = row_cache.load_cached_rows(tasks.import_task_module(spec.task.type), spec.task, tokenizer)
        description: dict[str, Any] = rows.describe()
        return description
    except (PeftrunError, OSError, ValueError) as fault:
        console.print_warning(f"data: {str(fault).splitlines()[0]}")
        return {"digest": GONE}
