"""Writes a folder that vLLM serves: one folder per adapter, the command in `launch.sh`, and the same as data in `vllm.json`. Light."""

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


def write_vllm_folder(
    sources: Sequence[ExportSource],
    base_id: str | None,
    revision: str | None,
    folder: Path,
    names: dict[str, dict[str, str]],
) -> dict[str, Any]:
    """Writes everything into `folder`; returns the content of `vllm.json`.

    Args: names: adapter → tensors to rename, see `wrapper`.
    Raises: AdapterError: the adapters have different base models, or cannot be converted to one rank.
    """
    check_same_base(sources)
    adapters = {
        source.name: _write_adapter(source, base_id, folder / source.name, names[source.name]) for source in sources
    }
    rank = vllm_support.get_max_lora_rank(max(adapter["rank"] for adapter in adapters.values()))
    info = {
        "rules_of": f"vLLM {vllm_support.VERSION}",
        "run_with_vllm": False,
        "base": base_id,
        "base_fingerprint": sources[0].fingerprint(),
        "max_lora_rank": rank,
        "adapters": adapters,
        "command": build_serve_command(list(adapters), base_id or "BASE", revision, rank),
    }
    atomic_files.write_json(folder / FACTS_FILE, info)
    # The recorded name is for the message of a missing BASE, inside shell quotes.
    base_name = re.sub(r"[^\w./:-]", "_", get_recorded_base_name(sources[0]) or "not known")
    message = f"set BASE to the base model ({base_name}): a folder or ORG/NAME"
    variable = f'BASE="${{BASE:-{base_id}}}"' if base_id else f'BASE="${{BASE:?{message}}}"'
    command = build_serve_command(list(adapters), '"$BASE"', revision, rank, where="./")
    atomic_files.write_text(
        folder / LAUNCH_SCRIPT,
        f'#!/bin/sh\n# Serves the adapters in this folder. More options of vLLM may follow.\nset -e\ncd "$(dirname "$0")"\n{variable}\nexec {command} "$@"\n',
    )
    (folder / LAUNCH_SCRIPT).chmod(0o755)
    return info


def build_serve_command(names: Sequence[str], base: str, revision: str | None, rank: int, where: str = "") -> str:
    """The command that serves these adapters. Args: where: prefix of the adapters' folders."""
    at = f" --revision {shlex.quote(revision)}" if revision else ""
    modules = " ".join(f"{name}={where}{name}" for name in names)
    limits = f"--max-lora-rank {rank} --max-loras {len(names)}"
    return f"vllm serve {base}{at} --enable-lora {limits} --lora-modules {modules}"


def check_same_base(sources: Sequence[ExportSource]) -> None:
    """Raises: AdapterError: two adapters have different base models, by the digest of the weights where it is known."""
    digests = {source.name: source.fingerprint().get("weights") for source in sources}
    known = {name: digest for name, digest in digests.items() if digest}
    first = next(iter(known), None)
    for name, digest in known.items():
        if first is not None and digest != known[first]:
            raise AdapterError(
                f"adapter.{name}: was made for another base model than adapter.{first} ({str(digest)[:12]}, {str(known[first])[:12]}); "
                "vLLM serves one base model: export them separately"
            )


def _write_adapter(source: ExportSource, base_id: str | None, folder: Path, names: dict[str, str]) -> dict[str, Any]:
    # vLLM before 0.33 ignores per-layer ranks and alphas without a warning, so they are converted to one of each.
    flatten = bool(source.config.get("rank_pattern") or source.config.get("alpha_pattern"))
    rank = _flatten_ranks(source, base_id, folder) if flatten else int(source.config["r"])
    if not flatten:
        adapter_files.copy_adapter(source, folder, base_id)
    if names:
        safetensors_header.rename_tensors(folder / ADAPTER_WEIGHTS, names)
    digest = atomic_files.hash_file(folder / ADAPTER_WEIGHTS)
    return {"rank": rank, "brought_to_one_rank": flatten, "tensors_renamed": len(names), "sha256": digest}


def _flatten_ranks(source: ExportSource, base_id: str | None, folder: Path) -> int:
    """Writes the adapter with one rank, which is returned, and scaling 1."""
    pairs = lora_factors.read_factors(source)
    if not pairs:
        raise AdapterError(f"{source.folder}: holds no LoRA factors; merge it instead (peftrun action=merge adapter=…)")
    rank = max(pair.rank for pair in pairs.values())
    changes = {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    adapter_files.copy_adapter(source, folder, base_id, changes)
    tensors: dict[str, Any] = {}
    for pair in pairs.values():
        # alpha/r = 1, so B takes the scaling; A is padded to (rank, in) and B to (out, rank).
        padded = lora_factors.pad_rank(lora_factors.rescale_factors(pair, 1.0), rank)
        tensors |= dict(zip(pair.names, (padded.a, padded.b), strict=True))
    from safetensors.numpy import save_file

    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})  # transformers requires the format
    return rank
