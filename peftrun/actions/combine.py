"""Combine several adapters into one, without training, and report its distance from their weighted sum."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from peftrun import console
from peftrun.adapters import combine, load, save
from peftrun.artifacts import adapter_folder, adapter_origin, classifier_head
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.config.schema.actions import CombineAction
from peftrun.config.schema.run import RunSpec
from peftrun.formatting import format_bytes
from peftrun.io import atomic_files
from peftrun.io.atomic_files import hash_file
from peftrun.models import base as base_models
from peftrun.models import placement
from peftrun.result import RunResult

WARN_RELATIVE_ERROR = 0.01  # ‖error‖ ÷ ‖weighted sum‖ above which the exact `cat` is recommended


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes the combination to `action.output_dir`, or to `adapter/` in the run folder."""
    spec = replace(spec, model=base_models.dequantize_spec(spec.model))
    action = spec.action
    assert isinstance(action, CombineAction)
    run_device = placement.resolve_run_device(spec)
    console.print_info(run_device.note)
    adapters = adapter_folder.resolve_adapters(spec.adapter)
    base = base_models.load_base(
        spec.model, run_device, head=classifier_head.select_head(spec.task, adapters, spec.active_adapter)
    )
    net, proofs = load.load(base, adapters, spec.active_adapter, spec.allow_base_mismatch)
    set_seed(spec.seed)  # DARE drops weights at random
    figures = combine.combine_adapters(net, action)
    adapter_dir = Path(action.output_dir).expanduser() if action.output_dir else out_dir / ADAPTER
    weights = action.weights or {}
    inputs = {
        name: {"sha256": hash_file(adapter.weights), "weight": weights.get(name, 1.0)}
        for name, adapter in adapters.items()
    }
    settings = {
        "combination": action.combination_type,
        "density": action.density,
        "seed": spec.seed,
        "adapters": inputs,
    }
    derived_from = {"combined": {**settings, **figures}}
    first, *others = (adapter_origin.select_training_facts(adapter) for adapter in adapters.values())
    shared = {key: value for key, value in first.items() if all(facts.get(key) == value for facts in others)}
    save.save(net, base, adapter_dir, untrained=set(), names=[combine.COMBINED], derived_from=derived_from | shared)
    facts = {
        "base": base.describe(),
        "device": run_device.note,
        "adapters": [proof.as_dict() for proof in proofs],
        **derived_from,
    }
    return RunResult(out_dir, facts, artifacts=[adapter_dir], summary=_build_summary(spec, figures, adapter_dir), next_commands=[
        f"peftrun action=reload adapter={console.shorten_path(adapter_dir)}"
    ])  # fmt: skip


def _build_summary(spec: RunSpec, figures: dict[str, Any], target: Path) -> list[tuple[str, str]]:
    assert isinstance(spec.action, CombineAction)
    error, worst = figures["relative_error"], max(figures["relative_errors"].items(), key=lambda item: item[1])
    if error > WARN_RELATIVE_ERROR and spec.action.combination_type in ("linear", "svd"):
        console.print_warning(
            f"action.combination_type={spec.action.combination_type}: differs from the weighted sum by {error:.1%}; type action.combination_type=cat, which is exact"
        )
    size = format_bytes(atomic_files.measure_size(target))
    return [
        (
            "combined",
            f"{', '.join(spec.adapter)} by {spec.action.combination_type}, {size}: {console.shorten_path(target)}",
        ),
        (
            "error of the weighted sum",
            f"‖error‖ ÷ ‖sum‖ {error:.3g}; largest in {worst[0].removeprefix('base_model.model.')}, {worst[1]:.3g}",
        ),
    ]
