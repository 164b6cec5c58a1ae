"""Save loaded adapters again: all or some, in another dtype if set; without `adapter=`, a freshly initialized one."""

import shlex
from pathlib import Path

from transformers import set_seed

from peftrun import console
from peftrun.adapters import attach, load, save
from peftrun.artifacts import adapter_folder, adapter_origin, classifier_head
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.config.schema.actions import SaveAction
from peftrun.config.schema.run import RunSpec
from peftrun.formatting import format_bytes
from peftrun.models import base_cache, device, placement
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes to `action.output_dir`, or to `adapter/` in the run folder."""
    assert isinstance(spec.action, SaveAction)
    set_seed(spec.seed)
    run_device = placement.resolve_run_device(spec)
    console.print_info(run_device.note)
    adapters = adapter_folder.resolve_adapters(spec.adapter)
    base = base_cache.load_cached_base(
        spec.model, run_device, head=classifier_head.select_head(spec.task, adapters, spec.active_adapter)
    )
    untrained, facts = {"default"}, {}  # adapters that were never trained
    if adapters:
        net, proofs = load.load(base, adapters, spec.active_adapter, spec.allow_base_mismatch)
        untrained, facts = (
            {proof.name for proof in proofs if proof.untrained},
            {"adapters": [proof.as_dict() for proof in proofs]},
        )
    else:
        net = attach.attach_adapter(base, spec.lora, spec.seed).eval()
    adapter_dir = Path(spec.action.output_dir).expanduser() if spec.action.output_dir else out_dir / ADAPTER
    # None keeps the dtype in which PEFT loaded or created the adapter.
    dtype = None if spec.action.dtype == "auto" else device.parse_dtype(spec.action.dtype)
    if adapters:
        learned = {name: adapter_origin.select_training_facts(adapter) for name, adapter in adapters.items()}
        save.save(net, base, adapter_dir, untrained=untrained, names=spec.action.adapters, dtype=dtype, learned=learned)
    else:
        # Initializations such as PiSSA change the base model; saving converts the adapter to fit the unchanged one,
        # for which it needs the initial A and B.
        with save.keep_untrained(net, spec.lora, out_dir) as initial:
            save.save(net, base, adapter_dir, untrained=untrained, dtype=dtype, initial=initial)
    names = spec.action.adapters or list(net.peft_config)
    size = sum(file.stat().st_size for file in adapter_dir.rglob("*.safetensors"))
    summary = [
        ("base", f"{base.name} ({base.fingerprint.short()})"),
        ("saved", ", ".join(f"{name} (untrained)" if name in untrained else name for name in names)),
        (
            "adapter",
            f"{format_bytes(size)}, {size / base.size():.2%} of the base model: {console.shorten_path(adapter_dir)}",
        ),
    ]
    return RunResult(
        out_dir,
        {"base": base.describe(), "device": run_device.note, **facts},
        artifacts=[adapter_dir],
        summary=summary,
        next_commands=[f"peftrun action=reload adapter={_format_adapter_paths(names, adapter_dir)}"],
    )


def _format_adapter_paths(names: list[str], target: Path) -> str:
    """The value of `adapter=` for the next command. PEFT saves `default` at the top, others in subfolders."""
    paths = {name: console.shorten_path(target if name == "default" else target / name) for name in names}
    if len(paths) == 1:
        return next(iter(paths.values()))
    return shlex.quote(f"{{{', '.join(f'{name}: {path}' for name, path in paths.items())}}}")
