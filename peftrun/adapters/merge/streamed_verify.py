"""The forward passes that prove a merge: base, adapter on base, written model, side by side from their files, a layer at a time."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from peftrun.adapters import layer_walk, load, probes
from peftrun.adapters.layer_walk import ForwardPass
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

    Args: net: see `meta_model.build_on_meta`. rows: token ids on which the models are compared beside the probes.
        writing: writes each tensor as the passes come to it, so that files are read while they are in the system's memory.
    Raises: ProofError: what was written is not the adapter on its base. NotWalkableError: this model computes whole only.
        NotStreamableError: what was to be written needs the whole model in memory.
    """
    tokenizer = load_tokenizer(job.base, job.model)
    plain, merged = (base_models.build_empty(one, job.model, job.head) for one in (job.base, folder))
    adapted, written = net.get_base_model(), _open_written(job, net, folder, merged)
    reached = partial(_write_reached, job, writing, written) if writing else None
    of_base = make_reader(plain, written.base_or_written(), reached=reached)
    of_merged = make_reader(merged, written.merged, reached=reached)
    texts = [lambda net: probes.compute_probe_logits(net, tokenizer), *(_make_row_logits(row) for row in rows)]
    passes = [
        ForwardPass(plain, of_base, _bind_model(texts[0], plain)),
        *(ForwardPass(adapted, of_base, _bind_model(text, net), written.check_layer) for text in texts),
        *(ForwardPass(merged, of_merged, _bind_model(text, merged)) for text in texts),
    ]
    for one in (plain, adapted, merged):
        one.config.use_cache = False
    tensors = load.check_tensors(net, job.adapter)
    logits = layer_walk.run_passes(passes)
    if writing:
        writing.write_rest()
    mark, figures = job.mark, _compare_written(job, written, merged)
    before, after, again = logits[0], torch.cat(logits[1 : 1 + len(texts)]), torch.cat(logits[1 + len(texts) :])
    computed = load.ProbeLogits(before, logits[1], "cpu float32")
    loaded = load.verify_load_by_logits(mark, net, job.adapter, computed, tensors=tensors)
    return {**figures, **verify.compare_logits(after, again, before, job.dtype)}, loaded


def verify_merge_in_memory(job: MergeJob, folder: Path, rows: list[list[int]]) -> tuple[dict[str, Any], LoadProof]:
    """The same with whole models in memory, one after another. Raises: ProofError: see `prove`."""
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
    """Logits of a whole model on the probes, and then on the rows: (tokens, choices)."""
    found = probes.compute_probe_logits(net, tokenizer)
    return torch.cat([found, probes.compute_row_logits(net, rows)]) if rows else found


def _open_written(job: MergeJob, net: Any, folder: Path, merged: Any) -> WrittenModel:
    """The written model, of which the config alone is compared so far. `merged`: without weights."""
    verify.check_config(net, folder, job.model.trust_remote_code)
    files = streaming.map_stored_tensors(net.get_base_model(), job.base), streaming.map_stored_tensors(merged, folder)
    return WrittenModel(net, job.name, *files)


def _write_reached(job: MergeJob, writing: MergedFiles, written: WrittenModel, key: str) -> None:
    if key in written.merged:
        writing.write(written.merged[key])


def _compare_written(job: MergeJob, written: WrittenModel, merged: Any) -> dict[str, Any]:
    """Figures of all tensors and layers, once texts have passed. Raises: ProofError: one of them is wrong."""
    written.equal |= {pair for check in job.checks.values() for pair in check.result().equal}
    written.compare_untouched(merged)
    return verify.check_written(written)


def _fail_on_read(*_: Any) -> Any:
    raise AssertionError("a model in memory asks for no weights")


def make_reader(
    net: Any,
    files: dict[str, StoredTensor],
    dtype: torch.dtype = torch.float32,
    reached: Callable[[str], object] | None = None,
) -> Callable[..., Any]:
    """How a pass reads, for computing in `dtype`; a classifier that no file holds yet is zero. `reached`: called before."""
    shapes = {layer_walk.plain_name(key): one.shape for key, one in net.named_parameters(remove_duplicate=False)}

    def read(key: str, start: int | None, stop: int | None) -> Any:
        if key not in files:
            return key, lambda: torch.zeros(shapes[key], dtype=dtype)[start:stop]
        if reached:
            reached(key)
        part = files[key].rows(start, stop)
        return (part.file, part.entry.begin, part.entry.end), lambda: part.read(torch.empty(part.count, dtype=dtype))

    return read


def _make_row_logits(row: list[int]) -> Callable[[Any], torch.Tensor]:
    return lambda net: probes.compute_row_logits(net, [row])


def _bind_model(text: Callable[[Any], torch.Tensor], net: Any) -> Callable[[], torch.Tensor]:
    return lambda: text(net)
