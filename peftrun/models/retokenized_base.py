"""A base model with another chat template, other special tokens or new tokens, as a folder in the cache; its own folder stays as it is.

The folder links to every file that stays the same. Where the tokenizer has more tokens than the model has embeddings, the weight files with
embeddings are written again with more rows. The new rows are the mean of the others, so that no random state is involved and the logits of
new tokens start where those of the others are.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from filelock import FileLock
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from peftrun import console
from peftrun.artifacts import base_files, token_settings
from peftrun.artifacts.run_layout import CHAT_TEMPLATE
from peftrun.artifacts.token_settings import TokenSettings
from peftrun.config.paths import cache_dir
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.io import atomic_files, safetensors_header, safetensors_stream
from peftrun.io.safetensors_stream import Part, PlannedTensor, StoredTensor, TensorFile
from peftrun.models import tokenizer as tokenizers
from peftrun.system.silence import suppress_output

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
IDS_IN_CONFIG = ("bos", "eos", "pad")  # special tokens whose ids the model's config names


def resolve(own_folder: Path, spec: ModelSpec, settings: TokenSettings) -> Path:
    """The folder of the base model in `own_folder` with these settings, written once.

    Raises: ModelError: its tokenizer or its embeddings do not allow them.
    """
    target = cache_dir() / "retokenized" / f"{own_folder.name}-{_compute_key(own_folder, settings)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # cells of a sweep may start at the same time
        if not target.is_dir():
            with atomic_files.create_folder(target) as folder:
                _write(folder, own_folder, spec, settings)
    return target


def _compute_key(own_folder: Path, settings: TokenSettings) -> str:
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(own_folder.iterdir())]
    return hashlib.sha256(json.dumps([str(own_folder), files, vars(settings)]).encode()).hexdigest()[:16]


def _write(folder: Path, own_folder: Path, spec: ModelSpec, settings: TokenSettings) -> None:
    tokenizer = tokenizers.open_tokenizer(own_folder, spec)
    known = len(tokenizer)
    tokenizers.apply_token_settings(tokenizer, settings, spec)
    if settings.changes_tokenizer:
        tokenizer.save_pretrained(folder)
        _write_configs(folder, own_folder, tokenizer, settings)
    elif settings.chat_template is not None:
        atomic_files.write_text(folder / CHAT_TEMPLATE, settings.chat_template)
    for file in own_folder.iterdir():
        is_tokenizer = tokenizers.TOKENIZER_FILES.search(file.name) and file.suffix != ".py"
        replaced = settings.changes_tokenizer and is_tokenizer
        if not replaced and not file.name.startswith(".") and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.resolve())
    if settings.new_tokens:
        needed = max(tokenizer.get_vocab().values()) + 1
        _enlarge_embeddings(folder, own_folder, spec, settings, known=known, needed=needed)
    token_settings.write_settings(folder, own_folder, settings)


def _write_configs(folder: Path, own_folder: Path, tokenizer: Any, settings: TokenSettings) -> None:
    """Writes the model's configs with the ids of its special tokens. What ended an answer before still does."""
    ids = {
        f"{role}_token_id": tokenizer.convert_tokens_to_ids(token)
        for role, token in settings.special_tokens.items()
        if role in IDS_IN_CONFIG
    }
    config = atomic_files.read_json(own_folder / CONFIG)
    nested = config.get("text_config")
    for values in (config, nested if isinstance(nested, dict) else {}):
        values |= {key: value for key, value in ids.items() if values is config or key in values}
    atomic_files.write_json(folder / CONFIG, config)
    if not (own_folder / GENERATION_CONFIG).is_file():
        return
    generation = atomic_files.read_json(own_folder / GENERATION_CONFIG)
    before = generation.get("eos_token_id")
    ends = [ids.get("eos_token_id"), *(before if isinstance(before, list) else [before])]
    generation |= ids
    if "eos_token_id" in ids:
        generation["eos_token_id"] = list(dict.fromkeys(end for end in ends if end is not None))
    atomic_files.write_json(folder / GENERATION_CONFIG, generation)


def _enlarge_embeddings(
    folder: Path, own_folder: Path, spec: ModelSpec, settings: TokenSettings, *, known: int, needed: int
) -> None:
    """Writes the weight files with embeddings of `needed` tokens if they have fewer. `known`: tokens before the new ones."""
    config = atomic_files.read_json(folder / CONFIG)
    sections = [section for section in (config, config.get("text_config")) if isinstance(section, dict)]
    rows = next((int(section["vocab_size"]) for section in sections if section.get("vocab_size")), None)
    if rows is None:
        raise _refuse(spec, f"its {CONFIG} names no vocab_size")
    if needed <= rows:
        return
    total = -(-needed // settings.multiple) * settings.multiple
    for section in sections:
        if section.get("vocab_size") == rows:
            section["vocab_size"] = total
    atomic_files.write_json(folder / CONFIG, config)
    enlarged = _list_enlarged(folder, own_folder, spec)
    for file in safetensors_header.list_weight_files(own_folder):
        tensors = safetensors_stream.list_stored_tensors(file)
        if not any(tensor.entry.name in enlarged for tensor in tensors):
            continue
        (folder / file.name).unlink()  # the link to the base model's own file
        written = TensorFile(folder / file.name, [_plan(tensor, enlarged, total, known) for tensor in tensors])
        for tensor in tensors:
            written.write(tensor.entry.name)
    name = base_files.format_base_name(spec)
    console.print_info(f"base {name}: its embeddings have {rows:,} rows, a copy of them in the cache {total:,}")


def _list_enlarged(folder: Path, own_folder: Path, spec: ModelSpec) -> set[str]:
    """Names, in the base model's files, of the tensors that have more rows with the config in `folder`."""
    small, large = (_build_empty(path, spec) for path in (own_folder, folder))
    shapes = {name: tuple(value.shape) for name, value in large.state_dict().items()}
    changed = {n: tuple(v.shape) for n, v in small.state_dict().items() if tuple(v.shape) != shapes[n]}
    stored = {
        tensor.entry.name: tensor
        for file in safetensors_header.list_weight_files(own_folder)
        for tensor in safetensors_stream.list_stored_tensors(file)
    }
    prefix, names = f"{large.base_model_prefix}.", set[str]()
    for name, shape in changed.items():
        found = {key for key in (name, prefix + name, name.removeprefix(prefix)) if key in stored}
        tied = name in large.all_tied_weights_keys or name in large.all_tied_weights_keys.values()
        if not found and not tied:
            raise _refuse(spec, f"its files hold no {name}")
        if any(stored[key].entry.shape != shape or not stored[key].dtype.is_floating_point for key in found):
            raise _refuse(spec, f"its {name} is stored in another form")
        if shape[1:] != shapes[name][1:]:
            raise _refuse(spec, f"its {name} has tokens in another dimension than the first")
        names |= found
    return names


def _build_empty(folder: Path, spec: ModelSpec) -> Any:
    """The model without weights: a language model with its output layer, any other without a head."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    is_causal = any(name.endswith(tokenizers.CAUSAL_SUFFIXES) for name in config.architectures or [])
    model_class = AutoModelForCausalLM if is_causal else AutoModel
    if config.is_encoder_decoder:
        model_class = AutoModelForSeq2SeqLM
    with suppress_output(), init_empty_weights():
        return model_class.from_config(config, trust_remote_code=spec.trust_remote_code)


def _plan(tensor: StoredTensor, enlarged: set[str], total: int, known: int) -> PlannedTensor:
    """The tensor to write: the same bytes, or if it is one of `enlarged` `total` rows of which the new ones are the mean of the `known` first."""
    entry = tensor.entry
    if entry.name not in enlarged:
        return PlannedTensor(entry.name, tensor.dtype, entry.shape, tensor, None)
    rows = entry.shape[0]
    mean = partial(_repeat_mean, tensor.rows(0, min(known, rows)), total - rows)
    parts: list[Part] = [*tensor.parts(), (tensor.count, mean)]
    return PlannedTensor(entry.name, tensor.dtype, (total, *entry.shape[1:]), None, parts)


def _repeat_mean(tensor: StoredTensor, count: int) -> torch.Tensor:
    """The mean of a tensor's rows, `count` times: (count, …)."""
    total = torch.zeros(tensor.entry.shape[1:], dtype=torch.float64)
    for block in tensor.row_blocks():
        total += tensor.rows(*block).read_float().double().sum(0)
    return (total / tensor.entry.shape[0]).float().expand(count, *total.shape)


def _refuse(spec: ModelSpec, reason: str) -> ModelError:
    return ModelError(
        f"model.new_tokens: the embeddings of {spec.name_or_path} cannot be enlarged, since {reason}; "
        "name tokens that it has, or enlarge them in a copy of it (transformers' resize_token_embeddings, save_pretrained)"
    )
