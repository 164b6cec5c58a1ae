"""Write a full model that needs no adapter, tensor by tensor; read the written files again and prove them equal."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from peftrun import adapter_folder, artifacts, console, device, fingerprint, heads, model, tasks
from peftrun.action_specs import MergeAction
from peftrun.adapter import load, probe, skeleton
from peftrun.device import Device
from peftrun.errors import ProofError
from peftrun.merge import in_memory, origin, proof, streaming
from peftrun.result import RunResult
from peftrun.schema import RunSpec
from peftrun.tasks import prepared


@dataclass
class _Evidence:
    """Logits of the base and of the adapter on it, at the tokens on which the merged model is compared."""

    plain: torch.Tensor
    adapted: torch.Tensor
    rows: list[list[int]]
    proofs: list[dict[str, Any]]


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The merged model in `action.output_dir`, or `merged/` in the run folder; base and adapter stay as they are."""
    spec = replace(spec, model=model.full_precision(spec.model))
    action = spec.action
    assert isinstance(action, MergeAction)
    place = device.resolve(spec.device)
    name = spec.active or next(iter(spec.adapter))
    in_memory.check(
        artifacts.read_json(adapter_folder.locate(spec.adapter[name], name) / artifacts.ADAPTER_CONFIG), name
    )
    base = model.locate(spec.model)
    model.check_full_precision(base, model.portable_name(spec.model))
    mark = fingerprint.of_model(base)
    known_as = model.portable_name(spec.model)
    identity = {"name": known_as, "revision": spec.model.revision, "fingerprint": mark.as_dict()}
    dtype = in_memory.stored_dtype(base) if action.dtype == "auto" else action.dtype
    if not action.verify:  # else loading checks it
        load.check_base(known_as, mark, adapter_folder.locate(spec.adapter[name], name), spec.allow_base_mismatch)
    evidence = _evidence(spec, place, name) if action.verify else None
    target = Path(action.output_dir).expanduser() if action.output_dir else out_dir / artifacts.MERGED
    console.doing(f"writing {console.short(target)}")
    started = time.perf_counter()
    figures: dict[str, Any] = {"verified": action.verify}
    with artifacts.new_folder(target, kept_if=ProofError) as folder:
        figures["streamed"] = _write(spec, place, name, base, folder)
        figures["seconds"] = round(time.perf_counter() - started, 2)
        origin.write(folder, identity, in_memory.stored_dtype(base), adapter_folder.locate(spec.adapter[name], name))
        if evidence is not None:
            figures |= _prove(spec, place, folder, evidence, dtype)
    facts = {
        "base": identity,
        "allow_base_mismatch": spec.allow_base_mismatch,
        "adapters": evidence.proofs if evidence else [],
        "merge": {**figures, "dtype": dtype},
    }
    summary = _summary(target, f"{known_as} ({mark.short()})", name, dtype, figures)
    verbs = ["evaluate"] if heads.of_adapter(spec.adapter[name], name) else ["evaluate", "generate"]
    again = [f"peftrun action={verb} model=pretrained model.name_or_path={console.short(target)}" for verb in verbs]
    return RunResult(out_dir, facts, artifacts=[target], summary=summary, next_commands=again)


def _evidence(spec: RunSpec, place: Device, name: str) -> _Evidence:
    assert isinstance(spec.action, MergeAction)
    console.say(f"device {place.name}, float32: a merge is computed exactly and rounded once")
    head = heads.of_adapter(spec.adapter[name], name)
    base = model.load_base(spec.model, place, torch.float32, head)
    rows: list[list[int]] = []
    if spec.action.held_out_rows and heads.of_task(spec.task) == head:
        held_out = prepared.rows(tasks.of_kind(spec.task.kind), spec.task, base.tokenizer).held_out
        rows = [row.ids for row in held_out[: spec.action.held_out_rows]]
    plain = _logits(base.model, base.tokenizer, rows)
    net, proofs = load.load(base, {name: spec.adapter[name]}, name, spec.allow_base_mismatch)
    return _Evidence(plain, _logits(net, base.tokenizer, rows), rows, [one.as_dict() for one in proofs])


def _logits(net: Any, tokenizer: Any, rows: list[list[int]]) -> torch.Tensor:
    found = probe.logits(net, tokenizer)
    return torch.cat([found, probe.logits_of_rows(net, rows)]) if rows else found


def _write(spec: RunSpec, place: Device, name: str, base: Path, folder: Path) -> bool:
    """Whether the merge was streamed."""
    assert isinstance(spec.action, MergeAction)
    dtype = None if spec.action.dtype == "auto" else device.dtype_of(spec.action.dtype)
    try:
        _check_streams(spec.adapter[name], name)
        net = skeleton.build(base, spec.model, spec.adapter[name], name)
        start = skeleton.starts_from_base(net, name)
        if start is not None:
            raise streaming.NotStreamableError(
                f"an adapter that starts from {start} and was not converted changes its base"
            )
        streaming.write(net, name, base, folder, dtype)
    except streaming.NotStreamableError as reason:
        console.say(f"this merge needs the whole model in memory: {reason}")
        for file in folder.iterdir():
            file.unlink()
        head = heads.of_adapter(spec.adapter[name], name)
        loaded = model.load_base(spec.model, place, torch.float32, head)
        whole, _ = load.load(loaded, {name: spec.adapter[name]}, name, spec.allow_base_mismatch)
        in_memory.write(whole, loaded, folder, dtype or device.dtype_of(in_memory.stored_dtype(base)))
        return False
    return True


def _check_streams(path: str, name: str) -> None:
    kind = artifacts.read_json(adapter_folder.locate(path, name) / artifacts.ADAPTER_CONFIG).get("peft_type")
    if kind in streaming.IN_MEMORY:
        raise streaming.NotStreamableError(
            f"{kind} adapters take parts of themselves from the base's weights or from random numbers"
        )


def _prove(spec: RunSpec, place: Device, folder: Path, evidence: _Evidence, dtype: str) -> dict[str, Any]:
    adapter = next(iter(spec.adapter)) if spec.active is None else spec.active
    head = heads.of_adapter(spec.adapter[adapter], adapter)
    console.doing("comparing the written files with the adapter on its base")
    again = model.load_folder(folder, spec.model, place, torch.float32, head)
    tokenizer = model.load_tokenizer(folder, spec.model)
    merged = _logits(again, tokenizer, evidence.rows)
    return {**proof.compare(evidence.adapted, merged, evidence.plain, dtype), "held_out_rows": len(evidence.rows)}


def _summary(target: Path, base: str, name: str, dtype: str, figures: dict[str, Any]) -> list[tuple[str, str]]:
    size = console.megabytes(artifacts.size_of(target))
    how = "streamed" if figures["streamed"] else "in memory"
    rows = [
        ("base", base),
        ("merged", f"adapter {name}, {dtype}, {size}, {how} in {figures['seconds']:.1f} s: {console.short(target)}"),
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
