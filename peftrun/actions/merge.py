"""Merge an adapter into its base model, tensor by tensor; read the written files again and verify them."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from peftrun import console, tasks
from peftrun.adapters import layer_walk, load, meta_model, probes
from peftrun.adapters.layer_walk import NotWalkableError
from peftrun.adapters.merge import in_memory, provenance, streamed_verify, streaming, verify
from peftrun.adapters.merge.job import MergeJob
from peftrun.adapters.merge.streaming import MergedFiles
from peftrun.artifacts import adapter_folder, adapter_rules, base_files, classifier_head
from peftrun.artifacts.run_layout import MERGED
from peftrun.config.schema.actions import MergeAction
from peftrun.config.schema.method_traits import get_method_traits
from peftrun.config.schema.run import RunSpec, TaskSpec
from peftrun.errors import AdapterError, ProofError
from peftrun.formatting import format_bytes, format_duration
from peftrun.io import atomic_files
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.models.tokenizer import load_tokenizer
from peftrun.result import RunResult
from peftrun.system import determinism
from peftrun.tasks import row_cache


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes the merged model to `action.output_dir`, or to `merged/` in the run folder; the inputs are not changed."""
    # The merge adds ΔW to full-precision weights, so a quantized base model is read without quantization.
    spec = replace(spec, model=base_models.dequantize_spec(spec.model))
    action = spec.action
    assert isinstance(action, MergeAction)
    run_device = device.resolve_device(spec.device)
    name = spec.active_adapter or next(iter(spec.adapter))
    adapter = adapter_folder.resolve_adapter(spec.adapter[name], name)
    in_memory.check_mergeable(adapter.config, name)
    base = base_models.resolve_base_dir(spec.model)
    base_name = base_files.format_base_name(spec.model)
    base_models.check_full_precision(base, base_name)
    stored_dtype = in_memory.detect_stored_dtype(base)
    dtype = stored_dtype if action.dtype == "auto" else action.dtype
    merged_dir = Path(action.output_dir).expanduser() if action.output_dir else out_dir / MERGED
    # The base model's files are hashed right after they were read for the merge.
    with (
        atomic_files.create_folder(merged_dir, kept_if=ProofError) as folder,
        ThreadPoolExecutor(2) as pool,
        determinism.without_tf32(),
    ):
        mismatch = spec.allow_base_mismatch
        job = MergeJob(spec.model, action, mismatch, run_device, base, adapter, dtype, pool)
        console.print_info(f"a merge is computed on {job.device.type}, in float32, and rounded once")
        if job.is_base_known:
            _ = job.mark  # raises before anything is written if the adapter was made for another base model
        figures = _write_and_verify(job, spec.task, folder, console.shorten_path(merged_dir))
        base_fingerprint = job.mark
        identity = {"name": base_name, "revision": spec.model.revision, "fingerprint": base_fingerprint.as_dict()}
        provenance.write_provenance(folder, identity, stored_dtype, adapter)
    load_proof = figures.pop("loaded", None)
    # A classifier writes no text.
    actions = ["evaluate"] if job.head else ["evaluate", "generate"]
    model = f"model=pretrained model.name_or_path={console.shorten_path(merged_dir)}"
    facts = {
        "base": identity,
        "allow_base_mismatch": spec.allow_base_mismatch,
        "adapters": [load_proof.as_dict()] if load_proof else [],
        "merge": {"verified": action.verify, **figures, "dtype": job.dtype},
    }
    return RunResult(
        out_dir,
        facts,
        artifacts=[merged_dir],
        hashes={merged_dir / file: check.result().sha256 for file, check in job.checks.items()},
        summary=_build_summary(merged_dir, f"{base_name} ({base_fingerprint.short()})", job, figures),
        next_commands=[f"peftrun action={next_action} {model}" for next_action in actions],
    )


def _write_and_verify(job: MergeJob, task: TaskSpec, folder: Path, shown: str) -> dict[str, Any]:
    """Writes and verifies the merge; figures for the record, and `loaded`, the proof that the adapter was loaded."""
    started, rows = time.perf_counter(), _load_eval_token_ids(job, task)
    console.set_activity(f"writing {shown}" + ", compared with the adapter on its base model" * job.action.verify)
    try:
        net, writing = _begin_streaming(job, folder)
        figures = _verify_streamed(job, net, rows, folder, writing) if job.action.verify else {}
        writing.write_rest()
    except streaming.NotStreamableError as reason:
        console.print_info(f"this merge needs the whole model in memory: {reason}")
        job.remove_written(folder)
        return _merge_in_memory(job, rows, folder)
    figures |= {"streamed": True, "seconds": round(writing.seconds, 2)}
    if job.action.verify:
        figures["proof_seconds"] = round(time.perf_counter() - started - writing.seconds, 2)
    return figures


def _begin_streaming(job: MergeJob, folder: Path) -> tuple[Any, MergedFiles]:
    """The PEFT model on the meta device, and the writer of the merge. Raises: NotStreamableError: all weights are needed at once."""
    method, reason = job.adapter.config.get("peft_type"), adapter_rules.why_weights_needed(job.adapter.config)
    if reason:
        raise streaming.NotStreamableError(reason)
    if not get_method_traits(method).streams:
        raise streaming.NotStreamableError(
            f"{method} adapters derive some of their tensors from the base model's weights or from a random state"
        )
    try:
        net = meta_model.build_on_meta(job.base, job.model, job.adapter)
    except AdapterError:
        _ = job.mark  # raises if the adapter was made for another base model, which explains the error better
        raise
    stored = streaming.map_stored_tensors(net.get_base_model(), job.base)
    job.check_memory(streaming.count_whole_values(net, job.name, stored))
    layer_walk.move_to_device(net, job.device)
    dtype = None if job.action.dtype == "auto" else device.parse_dtype(job.dtype)
    return net, streaming.begin_merged(net, job.name, job.base, folder, dtype, after=job.start_check)


def _verify_streamed(
    job: MergeJob, net: Any, rows: list[list[int]], folder: Path, writing: MergedFiles
) -> dict[str, Any]:
    try:
        proved, loaded = streamed_verify.verify_merge(job, net, folder, rows, writing)
    except NotWalkableError as reason:  # the forward pass of this architecture cannot be run layer by layer
        console.print_info(f"this proof needs the whole model in memory: {reason}")
        writing.write_rest()
        proved, loaded = streamed_verify.verify_merge_in_memory(job, folder, rows)
    return {**proved, "held_out_rows": len(rows), "loaded": loaded}


def _merge_in_memory(job: MergeJob, rows: list[list[int]], folder: Path) -> dict[str, Any]:
    """`_write_and_verify` for adapters that PEFT can merge only with the whole model in memory."""
    started = time.perf_counter()
    _ = job.mark  # raises before loading if the adapter was made for another base model
    base = base_models.load_base(job.model, job.place, torch.float32, job.head)
    base_logits = probes.compute_probe_logits(base.model, base.tokenizer)
    net, (load_proof,) = load.load(base, {job.name: job.adapter}, job.name, job.allow_base_mismatch)
    # Logits are taken before `in_memory.merge`, which folds the adapter into the base model's weights in place.
    adapter_logits = streamed_verify.compute_logits(net, base.tokenizer, rows)
    merged = in_memory.merge(net)
    if job.action.verify:
        verify.compare_logits(
            adapter_logits, streamed_verify.compute_logits(merged, base.tokenizer, rows), base_logits, "float32"
        )
    in_memory.save(merged, base, folder, device.parse_dtype(job.dtype))
    figures: dict[str, Any] = {"streamed": False, "seconds": round(time.perf_counter() - started, 2)}
    if not job.action.verify:
        return figures
    written = base_models.load_folder(folder, job.model, job.place, torch.float32, job.head)
    in_memory.check_saved_equals_merged(merged, written)
    tokenizer = load_tokenizer(folder, job.model)
    proof = verify.compare_logits(
        adapter_logits, streamed_verify.compute_logits(written, tokenizer, rows), base_logits, job.dtype
    )
    return {**figures, **proof, "held_out_rows": len(rows), "loaded": load_proof}


def _load_eval_token_ids(job: MergeJob, task: TaskSpec) -> list[list[int]]:
    """Token ids of evaluation rows, one list a row; empty if none are asked for or the adapter has another head."""
    count = job.action.num_eval_rows
    if not job.action.verify or not count or classifier_head.get_task_head(task) != job.head:
        return []
    tokenizer = load_tokenizer(job.base, job.model)
    held_out = row_cache.load_cached_rows(tasks.import_task_module(task.type), task, tokenizer).held_out
    return [row.ids for row in held_out[:count]]


def _build_summary(target: Path, base: str, job: MergeJob, figures: dict[str, Any]) -> list[tuple[str, str]]:
    size = format_bytes(atomic_files.measure_size(target))
    mode = "streamed" if figures["streamed"] else "in memory"
    rows = [
        ("base", base),
        (
            "merged",
            f"adapter {job.name}, {job.dtype}, {size}, {mode} in {format_duration(figures['seconds'])}: {console.shorten_path(target)}",
        ),
    ]
    if not job.action.verify:
        return [*rows, ("proof", "skipped (action.verify=false)")]
    rounding_share = figures["share_of_effect"]
    if rounding_share > verify.NOTABLE_LOSS:
        console.print_warning(
            f"rounding the merged weights to {job.dtype} moves the logits by {rounding_share:.0%} of what the adapter changes in them (root mean square): "
            "the files are correct, but the dtype is coarse for so small a change; type action.dtype=float32 and another folder to keep all of it"
        )
    agreement = (
        f"max |Δlogit| {figures['max_logit_difference']:.3g}, in root mean square {rounding_share:.2g} of the adapter's effect, "
        f"KL {figures['kl_divergence']:.3g}, top-1 agreement {figures['top1_agreement']:.1%}"
    )
    if figures["streamed"]:
        rows.append(
            (
                "tensors",
                f"{figures['summed']} are base model plus adapter, rounded once; of the others {figures['unchanged']} are the base model's byte for byte, "
                f"{figures['rounded']} the base model's rounded once",
            )
        )
    return [
        *rows,
        ("equals adapter on base", agreement),
        ("differs from base", f"max |Δlogit| {figures['max_logit_difference_from_base']:.3g}"),
    ]
