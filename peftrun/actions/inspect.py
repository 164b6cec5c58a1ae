"""Describe adapters: settings, size, norms of ΔW, provenance. No torch is imported."""

import math
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import adapter_folder, adapter_rules, adapter_tensors, delta_weights, lineage
from peftrun.artifacts.adapter_folder import STACK, AdapterRef
from peftrun.config.schema.run import RunSpec
from peftrun.formatting import format_bytes
from peftrun.io import atomic_files, safetensors_header
from peftrun.result import RunResult

MAX_ROWS = 5
SETTINGS = (
    "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "rank_pattern", "alpha_pattern", "bias", "modules_to_save",
    "target_parameters", "trainable_token_indices", "token_indices", "alora_invocation_tokens", "layer_replication", "init_lora_weights",
)  # fmt: skip
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes the descriptions to the record and to `inspect.json`; the summary shows the largest norms."""
    adapters = {
        name: describe_adapter(adapter) for name, adapter in adapter_folder.resolve_adapters(spec.adapter).items()
    }
    atomic_files.write_json(out_dir / "inspect.json", adapters)
    summary = [row for name, adapter in adapters.items() for row in _build_summary(name, adapter)]
    return RunResult(
        out_dir, {"inspect": adapters}, summary=[*summary, ("written", console.shorten_path(out_dir / "inspect.json"))]
    )


def describe_adapter(adapter: AdapterRef) -> dict[str, Any]:
    """All that the files of one adapter say.

    Raises: PeftrunError: a file in it is broken.
    """
    config, folder = adapter.config, adapter.folder
    entries, weights = safetensors_header.read_header(adapter.weights), delta_weights.read_deltas(folder)
    norms = delta_weights.compute_delta_norms(weights)
    provenance: dict[str, Any] | str = "made elsewhere"
    if adapter.metadata is not None:
        metadata, base = adapter.metadata, adapter.metadata["base"]
        provenance = {"peftrun": metadata.get("peftrun"), "base": base["name"], "fingerprint": base["fingerprint"]}
        provenance["untrained"] = metadata.get("untrained")
        provenance["ancestors"] = lineage.list_ancestors(metadata)
        provenance[STACK] = metadata.get(STACK) or []
    return {
        "folder": str(folder),
        "method": config.get("peft_type"),
        **{key: config.get(key) for key in SETTINGS},
        "parameters": sum(math.prod(entry.shape) for entry in entries),
        "bytes": sum(entry.end - entry.begin for entry in entries),
        "dtype": ", ".join(sorted({DTYPE_NAMES.get(entry.dtype, entry.dtype) for entry in entries})),
        "scaling": sorted({pair.scaling for pair in weights.found.values()}),
        "norm": delta_weights.total_norm(norms.values()) if norms else None,
        "norm_of": "scaling·B·A" + (", before DoRA's magnitudes" if config.get("use_dora") else ""),
        "modules": {
            module: {"rank": pair.rank, "scaling": pair.scaling, "norm": norms[module]}
            for module, pair in weights.found.items()
        },
        "not_measured": weights.unmeasured,
        "tensors": adapter_tensors.describe_extra_tensors(adapter, weights),
        "change_to_base": adapter_rules.describe_base_change(config),
        "not_loadable": adapter_rules.why_not_loadable(config),
        "provenance": provenance,
        "sha256": {file.name: atomic_files.hash_file(file) for file in sorted(folder.iterdir()) if file.is_file()},
    }


def _build_summary(name: str, adapter: dict[str, Any]) -> list[tuple[str, str]]:
    provenance = adapter["provenance"]
    origin = "made elsewhere (no peftrun.json)"
    if not isinstance(provenance, str):
        weights = str(provenance["fingerprint"]["weights"])[:12]
        fresh = ", never trained" if provenance["untrained"] else ""
        origin = f"peftrun {provenance['peftrun']} for {provenance['base']} ({weights}){fresh}"
    rows = [
        (f"adapter {name}", _format_settings(adapter)),
        ("made by", origin),
        *(("trained from", lineage.format_ancestor(one)) for one in _list_ancestors(provenance)),
        *(
            ("sum of", f"{part['folder']} (sha256 {part['sha256'][: lineage.DIGEST]})")
            for part in _list_parts(provenance)
        ),
        (
            "size",
            f"{adapter['parameters']:,} parameters, {format_bytes(adapter['bytes'])}, {adapter['dtype']}",
        ),
    ]
    ordered = sorted(adapter["modules"].items(), key=lambda item: -item[1]["norm"])  # Frobenius norms, largest first
    rows += [(f"‖ΔW‖ {module}", f"{row['norm']:.4g} (rank {row['rank']})") for module, row in ordered[:MAX_ROWS]]
    if ordered:
        rows.append(("‖ΔW‖ total", f"{adapter['norm']:.4g} of {len(ordered)} modules; {adapter['norm_of']}"))
    # The tensors outside of A/B pairs, largest norm first. No norm: a dtype that is not decoded here, or values that
    # are not finite.
    tensors = sorted(adapter["tensors"].items(), key=lambda item: -(item[1]["norm"] or 0.0))
    for tensor, row in tensors[:MAX_ROWS]:
        unread = "holds NaN, infinity or a dtype that is not read here"
        norm = unread if row["norm"] is None else f"norm {row['norm']:.4g}"
        rows.append(("also holds", f"{tensor}: {row['kind']}, {'×'.join(map(str, row['shape']))}, {norm}"))
    if len(tensors) > MAX_ROWS:
        rows.append(("also holds", f"{len(tensors) - MAX_ROWS} more tensors"))
    rows += [("base", f"{adapter['change_to_base']}")] if adapter["change_to_base"] else []
    rows += [("cannot be loaded", adapter["not_loadable"])] if adapter["not_loadable"] else []
    reasons = list(adapter["not_measured"].items())
    rows += [("not measured", f"{module}: {reason}") for module, reason in reasons[:MAX_ROWS]]
    return [*rows, ("not measured", f"{len(reasons) - MAX_ROWS} more")] if len(reasons) > MAX_ROWS else rows


def _list_ancestors(provenance: dict[str, Any] | str) -> list[dict[str, Any]]:
    """The adapters that it was trained from, nearest first; the first ones of many."""
    return [] if isinstance(provenance, str) else provenance["ancestors"][:MAX_ROWS]


def _list_parts(provenance: dict[str, Any] | str) -> list[dict[str, Any]]:
    """The adapters that a stack is the sum of."""
    return [] if isinstance(provenance, str) else provenance[STACK]


def _format_settings(adapter: dict[str, Any]) -> str:
    method = f"{adapter['method']}{' with DoRA' if adapter['use_dora'] else ''}"
    if adapter["r"] is None:
        return method + (f", trained tokens {adapter['token_indices']}" if adapter["token_indices"] else "")
    scaling = ", ".join(f"{value:.4g}" for value in adapter["scaling"]) or "not known"
    text = f"{method}, r={adapter['r']}, alpha={adapter['lora_alpha']}, scaling {scaling}"
    targets, full_modules = adapter["target_modules"], adapter["modules_to_save"]
    named = ", ".join(sorted(targets)) if isinstance(targets, list) else str(targets)
    text += f"{' (rsLoRA)' if adapter['use_rslora'] else ''}, on {named}, bias {adapter['bias']}"
    tokens, invocation = adapter["trainable_token_indices"], adapter["alora_invocation_tokens"]
    text += f", fully trained modules {', '.join(full_modules)}" if full_modules else ""
    text += f", trained tokens {tokens}" if tokens else ""
    return text + (f", invoked by tokens {invocation}" if invocation else "")
