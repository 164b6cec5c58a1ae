"""Write a full model that needs no adapter, tensor by tensor; read the written files again and prove them equal."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from peftrun import console, tasks
from peftrun.adapters import load, meta_model, probes
from peftrun.adapters.layer_walk import NotWalkableError
from peftrun.adapters.load import LoadProof
from peftrun.adapters.merge import in_memory, provenance, streamed_verify, streaming, verify
from peftrun.adapters.merge.job import MergeJob
from peftrun.artifacts import adapter_folder, adapter_rules, classifier_head, fingerprint
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, MERGED
from peftrun.config.schema.actions import MergeAction
from peftrun.config.schema.run import RunSpec, TaskSpec
from peftrun.errors import AdapterError, ProofError
from peftrun.io import atomic_files
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.models.tokenizer import load_tokenizer
from peftrun.result import RunResult
from peftrun.tasks import row_cache


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The merged model in `action.output_dir`, or `merged/` in the run folder; base and adapter stay as they are."""
    spec = replace(spec, model=base_models.dequantize_spec(spec.model))
    action = spec.action
    assert isinstance(action, MergeAction)
    place = device.resolve_device(spec.device)
    name = spec.active or next(iter(spec.adapter))
    adapter = adapter_folder.resolve_adapter_dir(spec.adapter[name], name)
    in_memory.check_mergeable(atomic_files.read_json(adapter / ADAPTER_CONFIG), name)
    base = base_models.resolve_base_dir(spec.model)
    base_models.check_full_precision(base, base_models.get_portable_name(spec.model))
    known_as = base_models.get_portable_name(spec.model)
    stored = in_memory.detect_stored_dtype(base)
    dtype = stored if action.dtype == "auto" else action.dtype
    target = Path(action.output_dir).expanduser() if action.output_dir else out_dir / MERGED
    console.print_info("a merge is computed in float32 and rounded once")
    # The base's content is hashed while it is merged, so that its files are read once.
    with atomic_files.create_folder(target, kept_if=ProofError) as folder, ThreadPoolExecutor(2) as pool:
        hashing = pool.submit(fingerprint.fingerprint_model, base)
        job = MergeJob(spec.model, action, spec.allow_base_mismatch, place, name, base, adapter, dtype, pool, hashing)
        figures = {"verified": action.verify, **_write_and_verify(job, spec.task, folder, console.shorten_path(target))}
        mark = job.mark
        identity = {"name": known_as, "revision": spec.model.revision, "fingerprint": mark.as_dict()}
        provenance.write_provenance(folder, identity, stored, adapter)
    loaded = figures.pop("loaded", None)
    facts = {
        "base": identity,
        "allow_base_mismatch": spec.allow_base_mismatch,
        "adapters": [loaded.as_dict()] if loaded else [],
        "merge": {**figures, "dtype": job.dtype},
    }
    summary = _build_summary(target, f"{known_as} ({mark.short()})", job, figures)
    verbs = ["evaluate"] if classifier_head.read_adapter_head(spec.adapter[name], name) else ["evaluate", "generate"]
    again = [
        f"peftrun action={verb} model=pretrained model.name_or_path={console.shorten_path(target)}" for verb in verbs
    ]
    hashes = {target / file: one.result() for file, one in job.hashes.items()}
    return RunResult(out_dir, facts, artifacts=[target], hashes=hashes, summary=summary, next_commands=again)


def _write_and_verify(job: MergeJob, task: TaskSpec, folder: Path, shown: str) -> dict[str, Any]:
    """Writes and proves; figures for the record, and `loaded`, the proof of the adapter's load."""
    console.set_activity(f"writing {shown}")
    started = time.perf_counter()
    try:
        net = _stream_merge(job, folder)
    except streaming.NotStreamableError as reason:
        console.print_info(f"this merge needs the whole model in memory: {reason}")
        job.remove_written(folder)
        return _merge_in_memory(job, _load_eval_token_ids(job, task), folder)
    figures: dict[str, Any] = {"streamed": True, "seconds": round(time.perf_counter() - started, 2)}
    if not job.action.verify:
        return figures
    rows = _load_eval_token_ids(job, task)
    console.set_activity("comparing the written files with the adapter on its base")
    proved, loaded = _verify_streamed(job, net, rows, folder)
    return {
        **figures,
        **proved,
        "loaded": loaded,
        "proof_seconds": round(time.perf_counter() - started - figures["seconds"], 2),
    }


def _stream_merge(job: MergeJob, folder: Path) -> Any:
    """PEFT's model without the base's weights, once the merge is written. Raises: NotStreamableError: it needs them all at once."""
    _check_streamable(str(job.adapter), job.name)
    try:
        net = meta_model.build_on_meta(job.base, job.model, str(job.adapter), job.name)
    except AdapterError:
        _ = job.mark  # another base is why
        raise
    dtype = None if job.action.dtype == "auto" else device.parse_dtype(job.dtype)
    streaming.write_merged(net, job.name, job.base, folder, dtype, after=job.start_checks)
    return net


def _verify_streamed(job: MergeJob, net: Any, rows: list[list[int]], folder: Path) -> tuple[dict[str, Any], LoadProof]:
    try:
        proved, loaded = streamed_verify.verify_merge(job, net, folder, rows)
    except NotWalkableError as reason:
        console.print_info(f"this proof needs the whole model in memory: {reason}")
        proved, loaded = streamed_verify.verify_merge_in_memory(job, folder, rows)
    return {**proved, "held_out_rows": len(rows)}, loaded


def _merge_in_memory(job: MergeJob, rows: list[list[int]], folder: Path) -> dict[str, Any]:
    """The same where PEFT merges the whole model at once."""
    started = time.perf_counter()
    _ = job.mark  # another base is refused before it is loaded
    loaded = base_models.load_base(job.model, job.place, torch.float32, job.head)
    plain = probes.compute_probe_logits(loaded.model, loaded.tokenizer)
    net, (proof_of_load,) = load.load(loaded, {job.name: str(job.adapter)}, job.name, job.allow_base_mismatch)
    adapted = streamed_verify.compute_logits(net, loaded.tokenizer, rows)
    merged = in_memory.merge(net)
    if job.action.verify:
        verify.compare_logits(adapted, streamed_verify.compute_logits(merged, loaded.tokenizer, rows), plain, "float32")
    in_memory.save(merged, loaded, folder, device.parse_dtype(job.dtype))
    figures: dict[str, Any] = {"streamed": False, "seconds": round(time.perf_counter() - started, 2)}
    if not job.action.verify:
        return figures
    again = base_models.load_folder(folder, job.model, job.place, torch.float32, job.head)
    in_memory.check_saved_equals_merged(merged, again)
    tokenizer = load_tokenizer(folder, job.model)
    compared = verify.compare_logits(adapted, streamed_verify.compute_logits(again, tokenizer, rows), plain, job.dtype)
    return {**figures, **compared, "held_out_rows": len(rows), "loaded": proof_of_load}


def _load_eval_token_ids(job: MergeJob, task: TaskSpec) -> list[list[int]]:
    """Token ids of held-out rows of the task, where the adapter answers such and a proof is asked for."""
    count = job.action.held_out_rows
    if not job.action.verify or not count or classifier_head.get_task_head(task) != job.head:
        return []
    tokenizer = load_tokenizer(job.base, job.model)
    held_out = row_cache.load_cached_rows(tasks.import_task_module(task.kind), task, tokenizer).held_out
    return [row.ids for row in held_out[:count]]


def _check_streamable(path: str, name: str) -> None:
    config = atomic_files.read_json(adapter_folder.resolve_adapter_dir(path, name) / ADAPTER_CONFIG)
    kind, reason = config.get("peft_type"), adapter_rules.why_weights_needed(config)
    if reason:
        raise streaming.NotStreamableError(reason)
    if kind in streaming.IN_MEMORY_TYPES:
        raise streaming.NotStreamableError(
            f"{kind} adapters take parts of themselves from the base's weights or from random numbers"
        )


def _build_summary(target: Path, base: str, job: MergeJob, figures: dict[str, Any]) -> list[tuple[str, str]]:
    size = console.format_megabytes(atomic_files.measure_size(target))
    how = "streamed" if figures["streamed"] else "in memory"
    rows = [
        ("base", base),
        (
            "merged",
            f"adapter {job.name}, {job.dtype}, {size}, {how} in {figures['seconds']:.1f} s: {console.shorten_path(target)}",
        ),
    ]
    if not figures["verified"]:
        return [*rows, ("proof", "not made, as asked (action.verify=false)")]
    share = figures["share_of_effect"]
    if share > verify.NOTABLE_LOSS:
        console.print_warning(
            f"rounding the merged weights to {job.dtype} moves the logits by {share:.0%} of what the adapter changes in them (root mean square): "
            "the files are right, the dtype is coarse for so small a change; type action.dtype=float32 and another folder to keep all of it"
        )
    equal = (
        f"max |Δlogit| {figures['max_logit_difference']:.3g}, in root mean square {share:.2g} of the adapter's effect, "
        f"KL {figures['kl_divergence']:.3g}, top-1 agreement {figures['top1_agreement']:.1%}"
    )
    if figures["streamed"]:
        rows.append(
            (
                "tensors",
                f"{figures['summed']} are base plus adapter, rounded once; of the others {figures['unchanged']} are the base's byte by byte, "
                f"{figures['rounded']} the base's rounded once",
            )
        )
    return [
        *rows,
        ("equals adapter on base", equal),
        ("differs from base", f"max |Δlogit| {figures['max_logit_difference_from_base']:.3g}"),
    ]
