"""Extract a low-rank adapter from the difference between a fine-tuned model and its base model; report what it leaves out."""

from dataclasses import replace
from pathlib import Path

from peftrun import console
from peftrun.adapters import attach, extract, save
from peftrun.artifacts import fingerprint
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.config.schema.actions import ExtractAction
from peftrun.config.schema.run import LoraSpec, RunSpec
from peftrun.formatting import format_bytes
from peftrun.io import atomic_files
from peftrun.models import base as base_models
from peftrun.models import placement
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes the adapter to `action.output_dir`, or to `adapter/` in the run folder."""
    # ΔW is a difference of full-precision weights, so a quantized base model is loaded without quantization.
    spec = replace(spec, model=base_models.dequantize_spec(spec.model))
    action = spec.action
    assert isinstance(action, ExtractAction) and isinstance(spec.lora, LoraSpec)
    run_device = placement.resolve_run_device(spec)
    console.print_info(run_device.note)
    tuned_dir = Path(action.finetuned_model).expanduser()
    base = base_models.load_base(spec.model, run_device)
    # The attached adapter only gives names and shapes; A and B are then overwritten by a truncated SVD of ΔW.
    net = attach.attach_adapter(base, spec.lora, spec.seed).eval()
    figures = extract.fill_from_change(net, "default", base.folder, tuned_dir)
    adapter_dir = Path(action.output_dir).expanduser() if action.output_dir else out_dir / ADAPTER
    derived_from = {"extracted": {"tuned": fingerprint.fingerprint_model(tuned_dir).as_dict(), **figures}}
    save.save(net, base, adapter_dir, untrained=set(), derived_from=derived_from)
    size, shown_dir = (
        format_bytes(atomic_files.measure_size(adapter_dir)),
        console.shorten_path(adapter_dir),
    )
    worst = max(figures["residuals"].items(), key=lambda item: item[1])
    left_out = sorted(figures["left_out"].items(), key=lambda item: -item[1])  # tensor → share of the squared change
    if left_out:
        first = ", ".join(f"{key} {share:.2g}" for key, share in left_out[:3])
        console.print_warning(
            f"{len(left_out)} changed tensors are not in the adapter, {sum(figures['left_out'].values()):.2g} of the squared change "
            f"(largest: {first}); lora.target_modules and lora.modules_to_save choose what is"
        )
    return RunResult(
        out_dir,
        {"base": base.describe(), "device": run_device.note, **derived_from},
        artifacts=[adapter_dir],
        summary=[
            ("extracted", f"rank {spec.lora.r}, {size}: {shown_dir}"),
            ("residual", f"‖ΔW − B·A‖ ÷ ‖ΔW‖ {figures['residual']:.3g}; largest in {worst[0]}, {worst[1]:.3g}"),
        ],
        next_commands=[f"peftrun action=reload adapter={shown_dir}"],
    )
