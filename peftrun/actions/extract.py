"""Make an adapter of what full fine-tuning has changed, say what it leaves out, and save it as any other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.adapters import attach, extract, save
from peftrun.artifacts import fingerprint
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.config.schema.actions import ExtractAction
from peftrun.config.schema.run import LoraSpec, RunSpec
from peftrun.io import atomic_files
from peftrun.models import base as base_models
from peftrun.models import placement
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The adapter in `action.output_dir`, or `adapter/` in the run folder."""
    spec = replace(spec, model=base_models.dequantize_spec(spec.model))
    action = spec.action
    assert isinstance(action, ExtractAction) and isinstance(spec.lora, LoraSpec)
    place = placement.resolve_run_device(spec)
    console.print_info(place.note)
    tuned = Path(action.tuned).expanduser()
    base = base_models.load_base(spec.model, place)
    net = attach.attach_adapter(base, spec.lora, spec.seed).eval()
    figures = extract.fill_from_change(net, "default", base.folder, tuned)
    target = Path(action.output_dir).expanduser() if action.output_dir else out_dir / ADAPTER
    made_of = {"extracted": {"tuned": fingerprint.fingerprint_model(tuned).as_dict(), **figures}}
    save.save(net, base, target, fresh=set(), made_of=made_of)
    return RunResult(
        out_dir,
        {"base": base.describe(), "device": place.note, **made_of},
        artifacts=[target],
        summary=_build_summary(spec.lora, figures, target),
        next_commands=[f"peftrun action=reload adapter={console.shorten_path(target)}"],
    )


def _build_summary(lora: LoraSpec, figures: dict[str, Any], target: Path) -> list[tuple[str, str]]:
    worst = max(figures["residuals"].items(), key=lambda item: item[1])
    left_out = sorted(figures["left_out"].items(), key=lambda item: -item[1])
    rows = [
        (
            "extracted",
            f"rank {lora.r}, {console.format_megabytes(atomic_files.measure_size(target))}: {console.shorten_path(target)}",
        ),
        ("residual", f"‖ΔW − B·A‖ ÷ ‖ΔW‖ {figures['residual']:.3g}; most in {worst[0]}, {worst[1]:.3g}"),
    ]
    if left_out:
        first = ", ".join(f"{key} {share:.2g}" for key, share in left_out[:3])
        console.print_warning(
            f"{len(left_out)} changed tensors are no part of the adapter, {sum(figures['left_out'].values()):.2g} of the squared change "
            f"(most: {first}); lora.target_modules and lora.modules_to_save name what is"
        )
    return rows
