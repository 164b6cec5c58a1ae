"""The forward passes that verify a merge: base model, adapter on it and written model in step, layer by layer from their files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from peftrun.adapters import layer_walk, load, probes
from peftrun.adapters.layer_walk import ForwardPass, LayerOutput
from peftrun.adapters.load import LoadProof
from peftrun.adapters.merge import streaming, verify
from peftrun.adapters.merge.job import MergeJob
from peftrun.adapters.merge.streaming import MergedFiles
from peftrun.adapters.merge.verify import WrittenModel
from peftrun.io.safetensors_stream import StoredTensor
from peftrun.models import base as base_models
from peftrun.models.tokenizer import load_tokenizer


def verify_merge(
    job: MergeJob, net: Any, folder: Path, rows: list[list[int]], writing: MergedFiles | None = None
) -> tuple[dict[str, Any], LoadProof]:
    """Figures of the merge in `folder`, and the proof of the adapter's load.

    Args: net: see `meta_model.build_on_meta`. rows: token ids on which the models are compared, besides the probes.
        writing: writes each tensor when the passes reach it, so that files are verified while they are in the page cache.
    Raises: ProofError: the written model is not the adapter on its base model. NotWalkableError: this model cannot compute layer by layer.
        NotStreamableError: a tensor cannot be written without the whole model in memory.
    """
    tokenizer = load_tokenizer(job.base, job.model)
    plain, merged = (base_models.build_empty(path, job.model, job.head) for path in (job.base, folder))
    adapted, written = net.get_base_model(), _open_written(job, net, folder, merged)
    reached = partial(_write_reached, job, writing, written) if writing else None
    check = partial(_check_reached, written, reached) if reached else written.check_layer
    read_base = make_reader(plain, written.base_or_written(), reached=reached, device=written.device)
    read_merged = make_reader(merged, written.merged, reached=reached, device=written.device)
    texts: list[Callable[[Any], torch.Tensor]] = [partial(probes.compute_probe_logits, tokenizer=tokenizer)]
    texts += [partial(probes.compute_row_logits, rows=[row]) for row in rows]  # of one row each: (tokens, vocabulary)
    passes = [
        ForwardPass(plain, read_base, partial(texts[0], plain)),
        *(ForwardPass(adapted, read_base, partial(text, net), check) for text in texts),
        *(ForwardPass(merged, read_merged, partial(text, merged)) for text in texts),
    ]
    for model in (plain, adapted, merged):
        model.config.use_cache = False
        layer_walk.move_to_device(model, written.device)
    tensors = load.check_tensors(net, job.adapter)
    plain_logits, *logits = layer_walk.run_passes(passes)
    if writing:
        writing.write_rest()
    mark, figures = job.mark, _compare_written(job, written, merged)
    adapted_logits, merged_logits = torch.cat(logits[: len(texts)]), torch.cat(logits[len(texts) :])
    computed = load.ProbeLogits(plain_logits, logits[0], f"{written.device.type} float32")
    loaded = load.verify_load_by_logits(mark, net, job.adapter, computed, tensors=tensors)
    return {**figures, **verify.compare_logits(adapted_logits, merged_logits, plain_logits, job.dtype)}, loaded


def verify_merge_in_memory(job: MergeJob, folder: Path, rows: list[list[int]]) -> tuple[dict[str, Any], LoadProof]:
    """The same with each whole model in memory, one after another. Raises: ProofError: see `verify_merge`."""
    base = base_models.load_base(job.model, job.place, torch.float32, job.head)
    plain = probes.compute_probe_logits(base.model, base.tokenizer)
    net, (loaded,) = load.load(base, {job.name: job.adapter}, job.name, job.allow_base_mismatch)
    empty = base_models.build_empty(folder, job.model, job.head)
    written = _open_written(job, net, folder, empty)
    compute = partial(compute_logits, tokenizer=base.tokenizer, rows=rows)
    (adapted,) = layer_walk.run_passes(
        [ForwardPass(net.get_base_model(), _fail_on_read, partial(compute, net), written.check_layer)]
    )
    figures = _compare_written(job, written, empty)
    del net, base.model
    merged = compute(base_models.load_folder(folder, job.model, job.place, torch.float32, job.head))
    return {**figures, **verify.compare_logits(adapted, merged, plain, job.dtype)}, loaded


def compute_logits(net: Any, tokenizer: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits of a whole model on the probes, then on the rows: (tokens, vocabulary)."""
    logits = probes.compute_probe_logits(net, tokenizer)
    return torch.cat([logits, probes.compute_row_logits(net, rows)]) if rows else logits


def _open_written(job: MergeJob, net: Any, folder: Path, merged: Any) -> WrittenModel:
    """The written model, of which only the config is compared so far. `merged`: the model in `folder`, without weights."""
    verify.check_config(net, folder, job.model.trust_remote_code)
    files = streaming.map_stored_tensors(net.get_base_model(), job.base), streaming.map_stored_tensors(merged, folder)
    return WrittenModel(net, job.name, *files)


def _write_reached(job: MergeJob, writing: MergedFiles, written: WrittenModel, key: str) -> None:
    """Writes a tensor that a pass has reached."""
    if key in written.merged:
        writing.write(written.merged[key])


def _check_reached(written: WrittenModel, reached: Callable[[str], object], computed: LayerOutput) -> None:
    """Compares an adapted layer after all of it is written: biases that the adapter has in full are read by no pass."""
    for key, _ in computed.module.get_base_layer().named_parameters(recurse=False):
        reached(layer_walk.plain_name(f"{computed.path}.{key}"))
    written.check_layer(computed)


def _compare_written(job: MergeJob, written: WrittenModel, merged: Any) -> dict[str, Any]:
    """Figures of all tensors and layers, after the forward passes. Raises: ProofError: one of them is wrong."""
    written.equal |= {pair for check in job.checks.values() for pair in check.result().equal}
    written.compare_untouched(merged)
    return verify.check_written(written)


def _fail_on_read(*_: Any) -> Any:
    raise AssertionError("a model in memory reads no weights")


def make_reader(
    net: Any,
    files: dict[str, StoredTensor],
    dtype: torch.dtype = torch.float32,
    reached: Callable[[str], object] | None = None,
    device: torch.device | None = None,
) -> Callable[..., Any]:
    """A `ForwardPass.read` for parameters in `files`, in `dtype`, on `device` (None: the host); zeros for a classifier that is in no file.

    Args: reached: called before each read.
    """
    shapes = {layer_walk.plain_name(key): p.shape for key, p in net.named_parameters(remove_duplicate=False)}

    def read(key: str, start: int | None, stop: int | None) -> Any:
        if key not in files:
            return key, lambda: torch.zeros(shapes[key], dtype=dtype, device=device)[start:stop]
        if reached:
            reached(key)
        rows = files[key].rows(start, stop)  # (stop - start, …)
        return (rows.file, rows.entry.begin, rows.entry.end), lambda: rows.read(
            torch.empty(rows.count, dtype=dtype, device=device)
        )

    return read
