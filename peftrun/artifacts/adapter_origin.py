"""What an adapter says about how it was made: the config groups `model` and `task` of its run, or of its own files. Light."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder, base_location, function_files, portable_names
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.run_layout import CONFIG
from peftrun.config import migrations
from peftrun.config import values as config
from peftrun.config.schema.quantization_formats import FORMATS
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import PeftrunError
from peftrun.system.packages import INSTALL_COMMANDS, find_package_dir

GROUPS = ("model", "task")
TRAINING_FACTS = ("trained_on", "rows", "task")  # entries of peftrun.json about what an adapter learned


@dataclass(frozen=True)
class AdapterOrigin:
    """How an adapter was made.

    Attributes:
        source: the run folder that says so, or the adapter itself.
        is_run: which of the two.
        groups: values of the config groups that are known, of GROUPS.
        unknown_base: why the base model is not known; None if it is.
        lora: values of the config group `lora` of its run; empty if there is none.
    """

    source: str
    is_run: bool
    groups: dict[str, dict[str, Any]]
    unknown_base: str | None = None
    lora: dict[str, Any] = field(default_factory=dict)


def read_origin(path: str, name: str) -> AdapterOrigin | None:
    """The origin of the adapter in a folder, or downloaded from the Hub; None if it cannot be read, which is reported where it is loaded."""
    run = adapter_folder.find_adapter_run(path)
    try:
        if run:
            recorded = config.read_run(run / CONFIG, report_changes=False)
            groups = {group: recorded[group] for group in GROUPS if isinstance(recorded.get(group), dict)}
            return AdapterOrigin(str(run), True, groups, lora=recorded.get("lora") or {})
        adapter = adapter_folder.resolve_adapter(path, name)
    except (PeftrunError, OSError):
        return None
    base, reason = _read_base(adapter)
    groups = {"model": dataclasses.asdict(base)} if base else {}
    if task := _read_task(adapter):
        groups["task"] = task
    return AdapterOrigin(adapter.label, False, groups, reason)


def _read_task(adapter: AdapterRef) -> dict[str, Any] | None:
    """Config group `task` of its peftrun.json in today's keys; None if there is none, or its values are of other types."""
    try:
        portable = select_portable_task((adapter.metadata or {})["task"])
        return migrations.upgrade_values({"task": portable})[0]["task"] if portable else None
    except (KeyError, TypeError, AttributeError):
        return None


def select_portable_task(task: dict[str, Any]) -> dict[str, Any] | None:
    """Values of config group `task` as an adapter carries them: without paths of this machine, and without functions of the user.

    An adapter that is passed on must not choose code to run: metrics that are such functions are left out, and of a task with such
    rewards there is nothing (None).
    """
    rewards, metrics = (task.get("objective") or {}).get("rewards") or [], task.get("metrics") or []
    if any(map(function_files.is_reference, rewards)):
        return None
    own = [name for name in metrics if not function_files.is_reference(name)]
    values: dict[str, Any] = portable_names.shorten_paths({**task, "metrics": own or None})
    return values


def select_training_facts(adapter: AdapterRef) -> dict[str, Any]:
    """The entries of its peftrun.json about what it learned, for an adapter that is made of it."""
    metadata = adapter.metadata or {}
    return {key: metadata[key] for key in TRAINING_FACTS if key in metadata}


def make_model_spec(name: str, revision: object, quantization: str | None = None) -> ModelSpec:
    """The base model of a recorded name: a Hub id, a folder, or PACKAGE:PATH, as peftrun names a model in a package."""
    package, colon, inside = name.partition(":")
    in_package = bool(colon) and (find_package_dir(package) is not None or package in INSTALL_COMMANDS)
    path, package_name = (inside, package) if in_package else (name, None)
    return ModelSpec(path, package_name, str(revision) if revision else None, quantization, None, False)  # type: ignore[arg-type]


def _read_base(adapter: AdapterRef) -> tuple[ModelSpec | None, str | None]:
    """The base model that the adapter was made for; or why it cannot be found."""
    facts: dict[str, Any] = (adapter.metadata or {}).get("base") or {}
    name = facts.get("name") or adapter.config.get("base_model_name_or_path")
    if not name:
        return None, "does not say which base model it was made for"
    quantization = facts.get("quantization")
    spec = make_model_spec(
        str(name),
        facts.get("revision") or adapter.config.get("revision"),
        quantization if quantization in FORMATS else None,  # else of its files, which say so themselves,
    )
    if _can_be_found(spec, is_portable_name=bool(facts)):
        return spec, None
    return None, f"was made for the base model {name}, which is not here under that name"


def _can_be_found(spec: ModelSpec, is_portable_name: bool) -> bool:
    """Whether the base model is on this machine, or has a name that the Hub may know.

    Args: is_portable_name: peftrun wrote it, which leaves of a folder's path the last part: it has no slash, as old ids of the Hub.
    """
    name = spec.name_or_path
    if spec.package or Path(name).expanduser().exists() or base_location.find_base_dir(spec):
        return True
    if name.startswith((".", "/", "~")) or ":" in name:
        return False
    return "/" in name or not is_portable_name or spec.revision is not None
