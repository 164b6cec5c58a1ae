"""What the catalogue keeps of one run: the facts of its record, its config as full keys, both without a library that takes time."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, PEFTRUN_METADATA, RECORD
from peftrun.config.paths import GROUPS
from peftrun.results.catalog import flat_yaml

LEARNING = ("train", "plan", "extract")  # their config says which method; others are given an adapter, or none
ON_ROWS = ("train", "evaluate", "plan", "preview")  # their config says which task
PLAIN_METRICS = ("loss", "perplexity")  # said last of what was measured
CHOICES = re.compile(r"^( +)choices:\n((?:\1  .*\n?)+)", re.MULTILINE)
CHOICE = re.compile(r"^ +([\w/]+): (.*)$", re.MULTILINE)
REJECTED = re.compile(r"\.rejected\d*$")  # how peftrun names what failed its proof
Values = dict[str, Any]


def read_run_folder(folder: str) -> tuple[Values, Values]:
    """Facts and config of a run folder, or of a folder that holds an adapter alone; what cannot be read says so in its status."""
    if not os.path.isfile(os.path.join(folder, RECORD)):
        return _collect_adapter_facts(folder), {}
    config = _read_config(folder)
    try:
        record = json.loads(_read_text(folder, RECORD))
        return _collect_run_facts(folder, record, config), config
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        return {"status": "unreadable", "error": f"{RECORD}: {error}", "action": config.get("action.name")}, config


def _read_text(*parts: str) -> str:
    return Path(*parts).read_text(encoding="utf-8")


def _read_config(folder: str) -> Values:
    try:
        return flat_yaml.parse_flat_yaml(_read_text(folder, CONFIG))
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _collect_run_facts(folder: str, record: Values, config: Values) -> Values:
    action, choices = record.get("action"), _read_choices(folder) or _parse_typed_choices(record)
    training = record.get("training") or {}
    return {
        "action": action,
        "status": record.get("status"),
        "started": record.get("started"),
        **_describe_task(record, action, config, choices),
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
        "sweep": _find_sweep(folder),
        "template": (record.get("template") or {}).get("name"),
        "of": ", ".join(str(value) for key, value in config.items() if key.startswith("adapter.")) or None,
        "device": record.get("device"),
        "error": record.get("error"),
        "pid": record.get("pid"),
        "host": record.get("host"),
        "command": _build_command(folder, record),
        **{f"versions.{name}": version for name, version in (record.get("versions") or {}).items()},
    }


def _describe_task(record: Values, action: Any, config: Values, choices: dict[str, str]) -> Values:
    if action not in ON_ROWS and "data" not in record:
        return {"task": None, "kind": None}
    kind = config.get("task.kind")
    return {"task": choices.get("task") or kind, "kind": kind}


def _describe_base(record: Values, config: Values) -> Values:
    base = record.get("base")
    if isinstance(base, dict):
        return {"base": base.get("name"), "fingerprint": str((base.get("fingerprint") or {}).get("weights"))[:12]}
    name = config.get("model.name_or_path") if record.get("action") in ON_ROWS else None
    return {"base": _predict_base_name(config.get("model.package"), str(name)) if name else base, "fingerprint": None}


def _predict_base_name(package: Any, name: str) -> str:
    """What the record will call this base once it is loaded."""
    if package:
        return f"{package}:{name}"
    is_folder = os.path.exists(os.path.expanduser(name)) or name.startswith(("/", ".", "~")) or name.count("/") != 1
    return os.path.basename(name.rstrip("/")) if is_folder else name


def _describe_artifacts(folder: str, record: Values, action: Any, config: Values, choices: dict[str, str]) -> Values:
    """What came out, where, how large; by which method."""
    files = [os.path.normpath(os.path.join(folder, name)) for name in record.get("artifacts") or ()]
    held = [os.path.dirname(file) for file in files if os.path.basename(file) == ADAPTER_CONFIG]
    adapter = held[0] if held else None
    learned = action in LEARNING
    method, rank = (choices.get("lora") or config.get("lora.method"), config.get("lora.r")) if learned else (None, None)
    if adapter and not learned:
        method, rank = _read_adapter_method(adapter)
    return {
        "adapter": adapter,
        "size": sum(_get_file_size(file) for file in files if file.endswith(".safetensors")) or None,
        "method": method,
        "rank": rank,
    }


def _read_adapter_method(adapter: str) -> tuple[Any, Any]:
    try:
        made = json.loads(_read_text(adapter, ADAPTER_CONFIG))
        name = "dora" if made.get("use_dora") else str(made.get("peft_type") or "").lower()
        return name or None, made.get("r")
    except (OSError, ValueError, AttributeError):
        return None, None


def _get_file_size(file: str) -> int:
    with suppress(OSError):
        return os.stat(file).st_size
    return 0


def _collect_metrics(metrics: Values) -> Values:
    """Every figure under its full key; of the one that says most its name, before and after."""
    after, before = metrics.get("after", metrics), metrics.get("before") or {}
    named = [name for name, value in after.items() if isinstance(value, int | float)]
    main = next((name for name in named if name not in PLAIN_METRICS), next(iter(named), None))
    return {
        "metric": main,
        "before": before.get(main),
        "after": after.get(main),
        **{f"metrics.{key}": value for key, value in flat_yaml.flatten_values(metrics).items() if key},
    }


def _find_sweep(folder: str) -> str | None:
    parent = os.path.dirname(folder)
    return parent if _read_sweep(parent) is not None else None


def _read_choices(folder: str) -> dict[str, str]:
    """Group → chosen option, as Hydra noted it; of a cell of a sweep, as its sweep did."""
    with suppress(OSError):
        return _parse_choices(_read_text(folder, ".hydra", "hydra.yaml"))
    sweep = _read_sweep(os.path.dirname(folder))
    if sweep is None:
        return {}
    choices, cells = sweep
    values = (cells.get(os.path.basename(folder)) or {}).get("values") or {}
    return choices | {key: str(value) for key, value in values.items() if key in choices}


def _parse_typed_choices(record: Values) -> dict[str, str]:
    """Group → option as it was typed: for a folder that was copied without Hydra's notes."""
    typed = record.get("command")
    pairs = [text.partition("=") for text in typed[1:] if isinstance(text, str)] if isinstance(typed, list) else []
    return {key: option for key, _, option in pairs if key in GROUPS}


def _build_command(folder: str, record: Values) -> str | None:
    """What was typed, `peftrun` first; of a cell, what would give it alone."""
    sweep = _read_sweep(os.path.dirname(folder))
    alone = (sweep[1].get(os.path.basename(folder)) or {}).get("command") if sweep else None
    typed = record.get("command")
    again = [text for text in typed[1:] if not _is_hydra_override(text)] if isinstance(typed, list) else []
    return alone or (" ".join(["peftrun", *map(_quote_word, again)]) if isinstance(typed, list) else None)


def _is_hydra_override(text: str) -> bool:
    """Whether it says where the run was put, and not what it was."""
    key = str(text).lstrip("+~").partition("=")[0]
    return key.startswith(("hydra.", "hydra/")) and key != "hydra.searchpath"


def _quote_word(text: str) -> str:
    import shlex

    return shlex.quote(text)


def _parse_choices(text: str) -> dict[str, str]:
    match = CHOICES.search(text)
    lines = CHOICE.findall(match[2]) if match else []
    return {group: option.strip("'\"") for group, option in lines if option != "null"}


def _read_sweep(folder: str) -> tuple[dict[str, str], dict[str, Values]] | None:
    """Chosen options of a sweep, and its cells by id; None: it is no sweep."""
    changed = [_get_mtime(os.path.join(folder, name)) for name in ("multirun.yaml", "sweep.json")]
    return _read_sweep_cached(folder, *changed) if any(changed) else None


def _get_mtime(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _read_sweep_cached(folder: str, *changed: int) -> tuple[dict[str, str], dict[str, Values]]:
    choices, cells = {}, {}
    with suppress(OSError):
        choices = _parse_choices(_read_text(folder, "multirun.yaml"))
    with suppress(OSError, ValueError, TypeError, KeyError):
        cells = {str(cell["id"]): cell for cell in json.loads(_read_text(folder, "sweep.json"))["cells"]}
    return choices, cells


def _collect_adapter_facts(folder: str) -> Values:
    method, rank = _read_adapter_method(folder)
    found: Values = {"status": "rejected" if REJECTED.search(folder) else "completed", "adapter": folder}
    found |= {"method": method, "rank": rank, **dict(_read_base_facts(folder))}
    with suppress(OSError):
        info = os.stat(os.path.join(folder, ADAPTER_WEIGHTS))
        found |= {
            "size": info.st_size,
            "started": datetime.fromtimestamp(info.st_mtime, UTC).isoformat(timespec="seconds"),
        }
    return found


def _read_base_facts(folder: str) -> Iterator[tuple[str, Any]]:
    """The base it was made for: as peftrun noted it, else as PEFT did."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        base = json.loads(_read_text(folder, PEFTRUN_METADATA))["base"]
        yield "base", base["name"]
        yield "fingerprint", str(base["fingerprint"]["weights"])[:12]
        return
    with suppress(OSError, ValueError, AttributeError):
        yield "base", json.loads(_read_text(folder, ADAPTER_CONFIG)).get("base_model_name_or_path")
