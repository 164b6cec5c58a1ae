"""Read what the catalog stores of a run: facts from its record, and its config by full key. Uses no slow library."""

import json
import os
import re
import shlex
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from peftrun.artifacts import lineage, records
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, PEFTRUN_METADATA, RECORD
from peftrun.config import migrations, old_overrides
from peftrun.config.paths import GROUPS
from peftrun.results.catalog import flat_yaml

METHOD_FROM_CONFIG = ("train", "plan", "extract")  # other actions take an adapter, or none
TASK_FROM_CONFIG = ("train", "evaluate", "plan", "preview")  # other actions ignore group task
PLAIN_METRICS = ("loss", "perplexity")  # shown only if nothing else was measured
CHOICES = re.compile(r"^( +)choices:\n((?:\1  .*\n?)+)", re.MULTILINE)
CHOICE = re.compile(r"^ +([\w/]+): (.*)$", re.MULTILINE)
REJECTED = re.compile(r"\.rejected\d*$")  # suffix of an adapter folder that failed its load proof
Values = dict[str, Any]


def read_run_folder(folder: str) -> tuple[Values, Values]:
    """Facts and config of a run folder, or of a folder with an adapter alone; status `unreadable` if the record is corrupt."""
    if not os.path.isfile(os.path.join(folder, RECORD)):
        method, rank = _read_adapter_method(folder)
        facts: Values = {"status": "rejected" if REJECTED.search(folder) else "completed", "adapter": folder}
        facts |= {"method": method, "rank": rank}
        try:
            metadata = json.loads(_read_text(folder, PEFTRUN_METADATA))
            base, facts["parents"] = metadata["base"], lineage.format_runs(metadata)
            facts["base"] = base["name"]
            facts["fingerprint"] = str(base["fingerprint"]["weights"])[:12]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            with suppress(OSError, ValueError, AttributeError):  # PEFT's file has the name alone
                facts["base"] = json.loads(_read_text(folder, ADAPTER_CONFIG)).get("base_model_name_or_path")
        with suppress(OSError):
            stat = os.stat(os.path.join(folder, ADAPTER_WEIGHTS))
            started = datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds")
            facts |= {"size": stat.st_size, "started": started}
        return facts, {}
    config: Values = {}
    with suppress(OSError, ValueError, yaml.YAMLError):
        config = _rename_keys(flat_yaml.parse_flat_yaml(_read_text(folder, CONFIG)))
    try:
        record = records.rename_keys(json.loads(_read_text(folder, RECORD)))
        return _collect_run_facts(folder, record, config), config
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        return {"status": "unreadable", "error": f"{RECORD}: {error}", "action": config.get("action.name")}, config


def _rename_keys(config: Values) -> Values:
    """The values of an older run in today's keys."""
    keys = {key: _rename_key(key) for key in config}
    return {new: migrations.rename_value(old, config[key]) for key, (new, old) in keys.items()}


@cache
def _rename_key(key: str) -> tuple[str, str]:
    """Today's name of a full key, and the old key of RENAMED that it has; empty: none. Runs share their keys."""
    new, found = migrations.rename_key(key)
    return new, found[-1] if found else ""


def _read_text(*path: str) -> str:
    return Path(*path).read_text(encoding="utf-8")


def _collect_run_facts(folder: str, record: Values, config: Values) -> Values:
    action, choices = record.get("action"), _read_choices(folder)
    command = record.get("command")
    if not choices and isinstance(command, list):  # the folder was copied without `.hydra`
        pairs = [text.partition("=") for text in command[1:] if isinstance(text, str)]
        choices = {group: migrations.rename_option(group, option) for group, _, option in pairs if group in GROUPS}
    training = record.get("training") or {}
    has_task, task_type = action in TASK_FROM_CONFIG or "data" in record, config.get("task.type")
    return {
        "action": action,
        "status": record.get("status"),
        "started": record.get("started"),
        **({"task": choices.get("task") or task_type, "kind": task_type} if has_task else {"task": None, "kind": None}),
        **_describe_base(record, config),
        **_describe_artifacts(folder, record, action, config, choices),
        **_collect_metrics(record.get("metrics") or {}),
        "objective": record.get("objective"),
        "trainable": record.get("trainable_parameters"),
        "parameters": record.get("parameters"),
        "steps": training.get("steps"),
        "seconds": record.get("seconds"),
        "tokens": training.get("tokens"),
        "seed": record.get("seed"),
        "sweep": os.path.dirname(folder) if _read_sweep(os.path.dirname(folder)) is not None else None,
        "template": (record.get("template") or {}).get("name"),
        "parents": lineage.format_runs(record),
        "of": ", ".join(str(value) for key, value in config.items() if key.startswith("adapter.")) or None,
        "device": record.get("device"),
        "error": record.get("error"),
        "pid": record.get("pid"),
        "host": record.get("host"),
        "command": _build_command(folder, record),
        **{f"versions.{name}": version for name, version in (record.get("versions") or {}).items()},
    }


def _describe_base(record: Values, config: Values) -> Values:
    base = record.get("base")
    if isinstance(base, dict):
        return {"base": base.get("name"), "fingerprint": str((base.get("fingerprint") or {}).get("weights"))[:12]}
    name = config.get("model.name_or_path") if record.get("action") in TASK_FROM_CONFIG else None
    if not name:
        return {"base": base, "fingerprint": None}
    # Not loaded yet: the name that the record will have once it is. A Hub id has exactly one slash.
    name, package = str(name), config.get("model.package")
    is_folder = os.path.exists(os.path.expanduser(name)) or name.startswith(("/", ".", "~")) or name.count("/") != 1
    local_name = os.path.basename(name.rstrip("/")) if is_folder else name
    return {"base": f"{package}:{name}" if package else local_name, "fingerprint": None}


def _describe_artifacts(folder: str, record: Values, action: Any, config: Values, choices: dict[str, str]) -> Values:
    """The adapter's folder, its method and rank, and the bytes of all safetensors files written."""
    files = [os.path.normpath(os.path.join(folder, name)) for name in record.get("artifacts") or ()]
    adapter = next((os.path.dirname(file) for file in files if os.path.basename(file) == ADAPTER_CONFIG), None)
    method, rank = None, None
    if action in METHOD_FROM_CONFIG and "parent" not in record:
        method, rank = choices.get("lora") or config.get("lora.method"), config.get("lora.r")
    elif adapter:
        method, rank = _read_adapter_method(adapter)
    size = 0  # bytes
    for file in files:
        if file.endswith(".safetensors"):
            with suppress(OSError):  # deleted since
                size += os.stat(file).st_size
    return {"adapter": adapter, "size": size or None, "method": method, "rank": rank}


def _read_adapter_method(adapter: str) -> tuple[Any, Any]:
    """Method and rank from adapter_config.json; PEFT stores DoRA as LoRA with a flag."""
    try:
        adapter_config = json.loads(_read_text(adapter, ADAPTER_CONFIG))
        name = "dora" if adapter_config.get("use_dora") else str(adapter_config.get("peft_type") or "").lower()
        return name or None, adapter_config.get("r")
    except (OSError, ValueError, AttributeError):
        return None, None


def _collect_metrics(metrics: Values) -> Values:
    """Every metric by full key; name, before and after of the main one."""
    after, before = metrics.get("after", metrics), metrics.get("before") or {}
    names = [name for name, value in after.items() if isinstance(value, int | float)]
    main = next((name for name in names if name not in PLAIN_METRICS), next(iter(names), None))
    return {
        "metric": main,
        "before": before.get(main),
        "after": after.get(main),
        **{f"metrics.{key}": value for key, value in flat_yaml.flatten_values(metrics).items() if key},
    }


def _read_choices(folder: str) -> dict[str, str]:
    """Group → chosen option, from Hydra's notes in the run folder; for a cell of a sweep, from those of the sweep."""
    with suppress(OSError):
        return _parse_choices(_read_text(folder, ".hydra", "hydra.yaml"))
    sweep = _read_sweep(os.path.dirname(folder))
    if sweep is None:
        return {}
    choices, cells = sweep
    values = (cells.get(os.path.basename(folder)) or {}).get("values") or {}
    return choices | {key: migrations.rename_option(key, str(value)) for key, value in values.items() if key in choices}


def _build_command(folder: str, record: Values) -> str | None:
    """The command line, starting with `peftrun`; for a cell of a sweep, the command that runs it alone."""
    sweep = _read_sweep(os.path.dirname(folder))
    cell_command = (sweep[1].get(os.path.basename(folder)) or {}).get("command") if sweep else None
    command = record.get("command")
    if cell_command:
        return shlex.join(old_overrides.rename_recorded(shlex.split(cell_command)))
    if not isinstance(command, list):
        return None
    words = []
    for text in old_overrides.rename_recorded(list(map(str, command[1:]))):
        key = text.lstrip("+~").partition("=")[0]
        # Hydra's own keys say where the run is stored, except for the search path, which says where options come from.
        if not key.startswith(("hydra.", "hydra/")) or key == "hydra.searchpath":
            words.append(shlex.quote(text))
    return " ".join(["peftrun", *words])


def _parse_choices(text: str) -> dict[str, str]:
    match = CHOICES.search(text)
    choices = CHOICE.findall(match[2]) if match else []
    return {
        group: migrations.rename_option(group, option.strip("'\"")) for group, option in choices if option != "null"
    }


def _read_sweep(folder: str) -> tuple[dict[str, str], dict[str, Values]] | None:
    """Chosen options of a sweep, and its cells by id; None: the folder is no sweep."""
    modified = [0, 0]  # nanoseconds; 0: no such file
    for position, name in enumerate(("multirun.yaml", "sweep.json")):
        with suppress(OSError):
            modified[position] = os.stat(os.path.join(folder, name)).st_mtime_ns
    return _read_sweep_cached(folder, *modified) if any(modified) else None


@lru_cache(maxsize=64)
def _read_sweep_cached(folder: str, *modified: int) -> tuple[dict[str, str], dict[str, Values]]:
    # Every cell of a sweep asks for the same two files; their times are part of the cache's key.
    choices, cells = {}, {}
    with suppress(OSError):
        choices = _parse_choices(_read_text(folder, "multirun.yaml"))
    with suppress(OSError, ValueError, TypeError, KeyError):
        cells = {str(cell["id"]): cell for cell in json.loads(_read_text(folder, "sweep.json"))["cells"]}
    return choices, cells
