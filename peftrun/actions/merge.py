"""Write a full model that needs no adapter; read the written files again and prove them equal."""

import time
from pathlib import Path
from typing import Any

import torch

from peftrun import artifacts, console, device, model
from peftrun.adapter import load, probe
from peftrun.merge import in_memory, proof
from peftrun.result import RunResult
from peftrun.schema import MergeAction, RunSpec


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The merged model in `action.output_dir`, or `merged/` in the run folder; base and adapter stay as they are."""
    assert isinstance(spec.action, MergeAction)
    place = device.resolve(spec.device)
    console.say(f"device {place.name}, float32: a merge is computed exactly and rounded once")
    base = model.load_base(spec.model, place, torch.float32)
    name = spec.active or next(iter(spec.adapter))
    dtype = in_memory.stored_dtype(base.folder) if spec.action.dtype == "auto" else spec.action.dtype
    plain = probe.logits(base.model, base.tokenizer)
    net, proofs = load.load(base, {name: spec.adapter[name]}, name, spec.allow_base_mismatch)
    adapted = probe.logits(net, base.tokenizer)
    target = Path(spec.action.output_dir).expanduser() if spec.action.output_dir else out_dir / artifacts.MERGED
    started = time.perf_counter()
    figures: dict[str, Any] = {"verified": spec.action.verify}
    with artifacts.new_folder(target) as folder:
        in_memory.write(net, base, folder, device.dtype_of(dtype))
        if spec.action.verify:
            again = model.load_folder(folder, spec.model, place, torch.float32)
            figures |= proof.compare(adapted, probe.logits(again, base.tokenizer), plain, dtype)
    facts = {
        "base": base.describe(),
        "adapters": [one.as_dict() for one in proofs],
        "merge": {**figures, "dtype": dtype, "seconds": round(time.perf_counter() - started, 2)},
    }
    return RunResult(out_dir, facts, artifacts=[target], summary=_summary(target, base, name, dtype, figures), next_commands=[
        f"peftrun action=evaluate model=pretrained model.name_or_path={console.short(target)}",
        f"peftrun action=generate model=pretrained model.name_or_path={console.short(target)}",
    ])  # fmt: skip


def _summary(target: Path, base: Any, name: str, dtype: str, figures: dict[str, Any]) -> list[tuple[str, str]]:
    size = console.megabytes(artifacts.size_of(target))
    rows = [
        ("base", f"{base.name} ({base.fingerprint.short()})"),
        ("merged", f"adapter {name}, {dtype}, {size}: {console.short(target)}"),
    ]
    if not figures["verified"]:
        return [*rows, ("proof", "not made, as asked (action.verify=false)")]
    equal = (
        f"max |Δlogit| {figures['max_logit_difference']:.3g} (tolerance {figures['tolerance']:g}), "
        f"KL {figures['kl_divergence']:.3g}, top-1 agreement {figures['top1_agreement']:.1%}"
    )
    return [
        *rows,
        ("equals adapter on base", equal),
        ("differs from base", f"max |Δlogit| {figures['max_logit_difference_from_base']:.3g}"),
    ]
