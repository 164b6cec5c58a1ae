"""Make one adapter of several, without training; measure it against their weighted sum; save it as any other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from peftrun import console
from peftrun.adapters import combine, load, save
from peftrun.artifacts import adapter_folder, classifier_head
from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_WEIGHTS
from peftrun.config.schema.actions import CombineAction
from peftrun.config.schema.run import RunSpec
from peftrun.io import atomic_files
from peftrun.io.atomic_files import hash_file
from peftrun.models import base as base_models
from peftrun.models import placement
from peftrun.result import RunResult

WARN_RELATIVE_ERROR = 0.01  # relative error from which it is said aloud that there are closer combinations


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The combination in `action.output_dir`, or `adapter/` in the run folder."""
    spec = replace(spec, model=base_models.dequantize_spec(spec.model))
    action = spec.action
    assert isinstance(action, CombineAction)
    place = placement.resolve_run_device(spec)
    console.print_info(place.note)
    base = base_models.load_base(
        spec.model, place, head=classifier_head.select_head(spec.task, spec.adapter, spec.active)
    )
    net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
    set_seed(spec.seed)  # DARE drops weights at random
    figures = combine.combine_adapters(net, action)
    target = Path(action.output_dir).expanduser() if action.output_dir else out_dir / ADAPTER
    made_of = {"combined": {**_describe_inputs(spec, action), **figures}}
    save.save(net, base, target, fresh=set(), names=[combine.COMBINED], made_of=made_of)
    facts = {"base": base.describe(), "device": place.note, "adapters": [one.as_dict() for one in proofs], **made_of}
    return RunResult(out_dir, facts, artifacts=[target], summary=_build_summary(spec, figures, target), next_commands=[
        f"peftrun action=reload adapter={console.shorten_path(target)}"
    ])  # fmt: skip


def _describe_inputs(spec: RunSpec, action: CombineAction) -> dict[str, Any]:
    """What it is made of: each adapter's file by content, its weight, and how."""
    folders = {name: adapter_folder.resolve_adapter_dir(path, name) for name, path in spec.adapter.items()}
    parts = {
        name: {"sha256": hash_file(folder / ADAPTER_WEIGHTS), "weight": (action.weights or {}).get(name, 1.0)}
        for name, folder in folders.items()
    }
    return {"combination": action.combination, "density": action.density, "seed": spec.seed, "adapters": parts}


def _build_summary(spec: RunSpec, figures: dict[str, Any], target: Path) -> list[tuple[str, str]]:
    assert isinstance(spec.action, CombineAction)
    error, worst = figures["relative_error"], max(figures["relative_errors"].items(), key=lambda item: item[1])
    if error > WARN_RELATIVE_ERROR and spec.action.combination in ("linear", "svd"):
        console.print_warning(
            f"action.combination={spec.action.combination}: is {error:.1%} off the weighted sum; cat is exact"
        )
    size = console.format_megabytes(atomic_files.measure_size(target))
    return [
        ("combined", f"{', '.join(spec.adapter)} by {spec.action.combination}, {size}: {console.shorten_path(target)}"),
        (
            "off the weighted sum",
            f"‖error‖ ÷ ‖sum‖ {error:.3g}; most in {worst[0].removeprefix('base_model.model.')}, {worst[1]:.3g}",
        ),
    ]
