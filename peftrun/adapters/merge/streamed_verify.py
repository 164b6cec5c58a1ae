"""The forward passes that prove a merge: base, adapter on base, written model, side by side from their files, a layer at a time."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from peftrun.adapters import layer_walk, load, probes
from peftrun.adapters.layer_walk import Pass
from peftrun.adapters.load import LoadProof
from peftrun.adapters.merge import streaming, verify
from peftrun.adapters.merge.job import MergeJob
from peftrun.adapters.merge.verify import WrittenModel
from peftrun.io.safetensors_stream import Stored
from peftrun.models import base as base_models
from peftrun.models.tokenizer import load_tokenizer


def prove(job: MergeJob, net: Any, folder: Path, rows: list[list[int]]) -> tuple[dict[str, Any], LoadProof]:
    """Figures of the merge in `folder`, and the proof of the adapter's load.

    Args: net: see `skeleton.build`. rows: token ids on which the models are compared beside the probes.
    Raises: ProofError: what was written is not the adapter on its base. NotWalkableError: this model computes whole only.
    """
    mark, tokenizer = job.mark, load_tokenizer(job.base, job.model)
    plain, merged = (base_models.empty(one, job.model, job.head) for one in (job.base, folder))
    adapted, written = net.get_base_model(), _untouched(job, net, folder, merged)
    of_base = {key: written.merged[key] if key in written.same else one for key, one in written.base.items()}
    texts = [lambda net: probes.logits(net, tokenizer), *(_of_row(row) for row in rows)]
    passes = [
        Pass(plain, reader(plain, of_base), _call(texts[0], plain)),
        *(Pass(adapted, reader(adapted, of_base), _call(text, net), written.check_layer) for text in texts),
        *(Pass(merged, reader(merged, written.merged), _call(text, merged)) for text in texts),
    ]
    for one in (plain, adapted, merged):
        one.config.use_cache = False
    tensors = load.check_tensors(net, job.name, job.adapter)
    logits = layer_walk.run(passes)
    before, after, again = logits[0], torch.cat(logits[1 : 1 + len(texts)]), torch.cat(logits[1 + len(texts) :])
    computed = load.Computed(before, logits[1], "cpu float32")
    loaded = load.prove_by(mark, net, job.name, job.adapter, computed, tensors=tensors)
    return {**verify.check(written), **verify.compare(after, again, before, job.dtype)}, loaded


def prove_whole(job: MergeJob, folder: Path, rows: list[list[int]]) -> tuple[dict[str, Any], LoadProof]:
    """The same with whole models in memory, one after another. Raises: ProofError: see `prove`."""
    base = base_models.load_base(job.model, job.place, torch.float32, job.head)
    plain = probes.logits(base.model, base.tokenizer)
    net, (loaded,) = load.load(base, {job.name: str(job.adapter)}, job.name, job.allow_base_mismatch)
    written = _untouched(job, net, folder, base_models.empty(folder, job.model, job.head))
    compute = partial(answers, tokenizer=base.tokenizer, rows=rows)
    (adapted,) = layer_walk.run([Pass(net.get_base_model(), _nothing, partial(compute, net), written.check_layer)])
    figures = verify.check(written)
    del net, base.model
    merged = compute(base_models.load_folder(folder, job.model, job.place, torch.float32, job.head))
    return {**figures, **verify.compare(adapted, merged, plain, job.dtype)}, loaded


def answers(net: Any, tokenizer: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits of a whole model on the probes, and then on the rows: (tokens, choices)."""
    found = probes.logits(net, tokenizer)
    return torch.cat([found, probes.logits_of_rows(net, rows)]) if rows else found


def _untouched(job: MergeJob, net: Any, folder: Path, merged: Any) -> WrittenModel:
    """The written model, its config and all tensors compared that no layer of the adapter computes. `merged`: without weights."""
    verify.check_config(net, folder, job.model.trust_remote_code)
    files = streaming.stored_in(net.get_base_model(), job.base), streaming.stored_in(merged, folder)
    equal = {pair for one in job.comparing for pair in one.result()}
    written = WrittenModel(net, job.name, *files, equal)
    written.compare_untouched(merged)
    return written


def _nothing(*_: Any) -> Any:
    raise AssertionError("a model in memory asks for no weights")


def reader(net: Any, files: dict[str, Stored], dtype: torch.dtype = torch.float32) -> Callable[..., Any]:
    """How a pass reads, for computing in `dtype`; a classifier that no file holds yet is zero."""
    shapes = {layer_walk.plain_name(key): one.shape for key, one in net.named_parameters(remove_duplicate=False)}

    def read(key: str, start: int | None, stop: int | None) -> Any:
        if key not in files:
            return key, lambda: torch.zeros(shapes[key], dtype=dtype)[start:stop]
        part = files[key].rows(start, stop)
        return (part.file, part.entry.begin, part.entry.end), lambda: part.as_float().to(dtype)

    return read


def _of_row(row: list[int]) -> Callable[[Any], torch.Tensor]:
    return lambda net: probes.logits_of_rows(net, [row])


def _call(text: Callable[[Any], torch.Tensor], net: Any) -> Callable[[], torch.Tensor]:
    return lambda: text(net)
