"""Save loaded adapters again: all or some, in another dtype if set; without `adapter=`, a freshly initialized one."""

import shlex
from pathlib import Path
from typing import Any

from transformers import set_seed

from peftrun import console
from peftrun.adapters import attach, load, save
from peftrun.artifacts import classifier_head
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.config.schema.actions import SaveAction
from peftrun.config.schema.run import RunSpec
from peftrun.models import base_cache, device, placement
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes to `action.output_dir`, or to `adapter/` in the run folder."""
    assert isinstance(spec.action, SaveAction)
    set_seed(spec.seed)
    run_device = placement.resolve_run_device(spec)
    console.print_info(run_device.note)
    base = base_cache.load_cached_base(
        spec.model, run_device, head=classifier_head.select_head(spec.task, spec.adapter, spec.active_adapter)
    )
    net, fresh, facts = _load_adapted_model(spec, base)
    adapter_dir = Path(spec.action.output_dir).expanduser() if spec.action.output_dir else out_dir / ADAPTER
    # None keeps the dtype in which PEFT loaded or created the adapter.
    dtype = None if spec.action.dtype == "auto" else device.parse_dtype(spec.action.dtype)
    if spec.adapter:
        save.save(net, base, adapter_dir, fresh=fresh, names=spec.action.adapters, dtype=dtype)
    else:
        # Initializations such as PiSSA change the base model; saving converts the adapter to fit the unchanged one,
        # for which it needs the initial A and B.
        with save.keep_untrained(net, spec.lora, out_dir) as initial:
            save.save(net, base, adapter_dir, fresh=fresh, dtype=dtype, initial=initial)
    names = spec.action.adapters or list(net.peft_config)
    size = sum(file.stat().st_size for file in adapter_dir.rglob("*.safetensors"))
    summary = [
        ("base", f"{base.name} ({base.fingerprint.short()})"),
        ("saved", ", ".join(f"{name} (fresh)" if name in fresh else name for name in names)),
        (
            "adapter",
            f"{console.format_megabytes(size)}, {size / base.size():.2%} of the base model: {console.shorten_path(adapter_dir)}",
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


def _load_adapted_model(spec: RunSpec, base: Any) -> tuple[Any, set[str], dict[str, Any]]:
    """The PEFT model, the names of adapters that were never trained, and facts for the record."""
    if not spec.adapter:
        return attach.attach_adapter(base, spec.lora, spec.seed).eval(), {"default"}, {}
    net, proofs = load.load(base, spec.adapter, spec.active_adapter, spec.allow_base_mismatch)
    return net, {proof.name for proof in proofs if proof.fresh}, {"adapters": [proof.as_dict() for proof in proofs]}
