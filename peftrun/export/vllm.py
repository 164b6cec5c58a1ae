"""A folder that vLLM serves: each adapter in a folder of its own, the command in `launch.sh`, and what was checked in `vllm.json`. Light."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.portable_names import get_recorded_base_name
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.checks import vllm_support
from peftrun.errors import AdapterError
from peftrun.export import adapter_files, lora_factors
from peftrun.io import atomic_files, safetensors_header

LAUNCH_SCRIPT, FACTS_FILE = "launch.sh", "vllm.json"
BASE_VARIABLE = '"$BASE"'


def write_vllm_folder(
    sources: Sequence[ExportSource],
    base_id: str | None,
    revision: str | None,
    folder: Path,
    names: dict[str, dict[str, str]],
) -> dict[str, Any]:
    """Everything in `folder`, and what `vllm.json` says.

    Args: names: adapter → its tensors that get another name, see `wrapper`.
    Raises: AdapterError: the adapters are for different bases, or cannot be brought under one scaling.
    """
    check_same_base(sources)
    adapters = {
        source.name: _write_adapter(source, base_id, folder / source.name, names[source.name]) for source in sources
    }
    rank = vllm_support.get_max_lora_rank(max(one["rank"] for one in adapters.values()))
    found = {
        "rules_of": f"vLLM {vllm_support.VERSION}",
        "run_with_vllm": False,
        "base": base_id,
        "base_fingerprint": sources[0].fingerprint(),
        "max_lora_rank": rank,
        "adapters": adapters,
        "command": build_serve_command(list(adapters), base_id or "BASE", revision, rank),
    }
    atomic_files.write_json(folder / FACTS_FILE, found)
    called = get_recorded_base_name(sources[0])
    atomic_files.write_text(
        folder / LAUNCH_SCRIPT,
        _render_launch_script(
            build_serve_command(list(adapters), BASE_VARIABLE, revision, rank, where="./"), base_id, called
        ),
    )
    (folder / LAUNCH_SCRIPT).chmod(0o755)
    return found


def build_serve_command(names: Sequence[str], base: str, revision: str | None, rank: int, where: str = "") -> str:
    """The command that serves these adapters, in the folder that holds them, or with `where` before each."""
    at = f" --revision {shlex.quote(revision)}" if revision else ""
    modules = " ".join(f"{name}={where}{name}" for name in names)
    limits = f"--max-lora-rank {rank} --max-loras {len(names)}"
    return f"vllm serve {base}{at} --enable-lora {limits} --lora-modules {modules}"


def check_same_base(sources: Sequence[ExportSource]) -> None:
    """Raises: AdapterError: two of them were made for different bases."""
    marks = {source.name: source.fingerprint().get("weights") for source in sources}
    known = {name: mark for name, mark in marks.items() if mark}
    first = next(iter(known), None)
    for name, mark in known.items():
        if first is not None and mark != known[first]:
            raise AdapterError(
                f"adapter.{name}: was made for another base than adapter.{first} ({str(mark)[:12]}, {str(known[first])[:12]}); "
                "vLLM serves one base: export them apart"
            )


def _write_adapter(source: ExportSource, base_id: str | None, folder: Path, names: dict[str, str]) -> dict[str, Any]:
    """The adapter's files; per-layer ranks and scalings, which older versions of vLLM pass over without a word, are brought to one."""
    flat = bool(source.config.get("rank_pattern") or source.config.get("alpha_pattern"))
    rank = _flatten_ranks(source, base_id, folder) if flat else int(source.config["r"])
    if not flat:
        adapter_files.copy_adapter(source, folder, base_id)
    if names:
        safetensors_header.rename_tensors(folder / ADAPTER_WEIGHTS, names)
    weights = atomic_files.hash_file(folder / ADAPTER_WEIGHTS)
    return {"rank": rank, "brought_to_one_rank": flat, "tensors_renamed": len(names), "sha256": weights}


def _flatten_ranks(source: ExportSource, base_id: str | None, folder: Path) -> int:
    pairs = lora_factors.read_factors(source)
    if not pairs:
        raise AdapterError(f"{source.folder}: holds no LoRA factors; merge it instead (peftrun action=merge adapter=…)")
    rank = max(one.rank for one in pairs.values())
    changes = {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    adapter_files.copy_adapter(source, folder, base_id, changes)
    tensors: dict[str, Any] = {}
    for one in pairs.values():
        whole = lora_factors.pad_rank(lora_factors.rescale_factors(one, 1.0), rank)
        tensors |= dict(zip(one.names, (whole.a, whole.b), strict=True))
    from safetensors.numpy import save_file

    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    return rank


def _render_launch_script(line: str, base_id: str | None, called: str | None) -> str:
    """Args: called: what the base is called here, which others may not find."""
    name = re.sub(r"[^\w./:-]", "_", called or "not known")  # stands within quotes of a shell
    asked = f"set BASE to the base model ({name}): a folder or ORG/NAME"
    wanted = f'BASE="${{BASE:-{base_id}}}"' if base_id else f'BASE="${{BASE:?{asked}}}"'
    return f'#!/bin/sh\n# Serves the adapters beside this file. More options of vLLM may follow.\nset -e\ncd "$(dirname "$0")"\n{wanted}\nexec {line} "$@"\n'
