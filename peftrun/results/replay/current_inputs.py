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
    numerics: dict[str, Any] | None = None
    if not needs_processes(spec) and "numerics" in then:
        try:
            import_module("peftrun.models.device").resolve_device(spec.device)
            # These modules are imported by name since they import torch, which a check of other inputs does not need.
            numerics = import_module("peftrun.system.determinism").describe_determinism()
        except PeftrunError as fault:  # the device is not available; versions and machine then say why
            console.print_warning(fault.lines[0])
    facts = {
        "environment": environment.describe_environment(),
        "versions": collect_versions(),
        "platform": platform.platform(),
        "git_commit": environment.get_git_commit(Path()),
        "input_adapters": source_run.hash_input_adapters(spec.adapter),
        "files": source_run.hash_input_files(spec),
        "numerics": numerics,
    }
    for key in ("base", "merged"):  # a record has `merged` in place of `base` if the run undid a merge
        if not then.get(key):
            continue
        base, fingerprint = import_module("peftrun.models.base"), import_module("peftrun.artifacts.fingerprint")
        try:
            parts = (
                fingerprint.fingerprint_model(base.resolve_base_dir(spec.model))
                .with_arguments(spec.model.arguments)
                .as_dict()
            )
        except PeftrunError as fault:
            console.print_warning(f"{key}: {fault.lines[0]}")
            parts = {"weights": GONE}
        facts[key] = {"fingerprint": parts}
    return facts | ({"data": _describe_data(spec)} if then.get("data") else {})


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
