"""The frozen base model: from a Hub id, a folder or an installed package to a model, its tokenizer and its fingerprint."""

import atexit
import dataclasses
import errno
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from peftrun import console
from peftrun.artifacts import base_files, base_location, fingerprint, token_settings
from peftrun.artifacts.classifier_head import ClassifierHead
from peftrun.artifacts.fingerprint import Fingerprint
from peftrun.artifacts.token_settings import TokenSettings
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.formatting import format_value
from peftrun.io import atomic_files
from peftrun.models import gguf, memory_check, quantization, retokenized_base
from peftrun.models.config import explain_refused_arguments, get_loader_arguments, load_config
from peftrun.models.device import Device
from peftrun.models.tokenizer import check_model_kind, explain_load_error, limit_sequence_length, load_tokenizer
from peftrun.system.silence import suppress_output

CLASSIFIER_CLASSES = {"seq_cls": AutoModelForSequenceClassification, "token_cls": AutoModelForTokenClassification}
HEAD_SEED = 0  # fixed, so that an untrained head has the same weights wherever it is created


@dataclass
class LoadedBase:
    """A loaded base model.

    Attributes:
        model: the frozen transformers model, in evaluation mode, on its device.
        tokenizer: has a pad token.
        folder: the folder of its safetensors files.
        name: portable: a Hub id, `package:file`, or the last part of a folder's path.
        spec: the config that it was loaded with.
        device: the device it was loaded on.
        head: a classifier's; None for a language model.
        held: its quantization (`nf4`, `gptq`, …); None: full precision.
        untrained_modules: modules of a classifier that are not in the base model's files: its head.
    """

    model: Any
    tokenizer: Any
    folder: Path
    name: str
    revision: str | None
    fingerprint: Fingerprint
    spec: ModelSpec
    device: Device
    head: ClassifierHead | None = None
    held: str | None = None
    untrained_modules: tuple[str, ...] = ()

    @cached_property
    def tokens(self) -> TokenSettings | None:
        """What the config changes in its tokenizer; None if nothing."""
        retokenized = token_settings.read_settings(self.folder)
        return retokenized[1] if retokenized else None

    def list_new_token_ids(self) -> list[int]:
        """Ids of the tokens that the config adds."""
        return list(self.tokenizer.convert_tokens_to_ids(list(self.tokens.new_tokens))) if self.tokens else []

    def describe(self) -> dict[str, Any]:
        """For the record and `peftrun.json`."""
        facts = {"name": self.name, "revision": self.revision, "fingerprint": self.fingerprint.as_dict()}
        facts |= {"quantization": self.held} if self.held else {}
        return facts | ({"tokens": self.tokens.describe()} if self.tokens else {})

    def size(self) -> int:
        """Bytes of its safetensors files."""
        return atomic_files.measure_size(self.folder)


def load_base(
    spec: ModelSpec, device: Device, dtype: torch.dtype | None = None, head: ClassifierHead | None = None
) -> LoadedBase:
    """The base model of `spec`, in `dtype` (None: the device's), on `device`; with `head` as a classifier.

    Raises: ModelError: it is missing, is of the other kind (language model, encoder), or has pickles only.
        MemoryShortageError: it is larger than the free memory.
    """
    dtype = dtype or device.dtype
    folder = resolve_base_dir(spec)
    stored = quantization.get_stored_quantization(folder)
    # all that can be refused from the config alone, before gigabytes are hashed and read
    quantization.check_quantization(folder, spec, device, dtype)
    memory_check.check_load_memory(folder, spec, device, dtype)
    mark = fingerprint.fingerprint_model(folder).with_arguments(spec.arguments)
    try:
        check_model_kind(load_config(folder, spec), spec, head)
        _check_structure(folder, spec, head)
        model, untrained = _load_model(folder, spec, device, dtype, head)
        tokenizer = load_tokenizer(folder, spec)
        if head is not None:
            limit_sequence_length(tokenizer, model.config)
    except (ValueError, OSError, ImportError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:  # the machine's fault, reported by resource_errors
            raise
        raise ModelError(explain_load_error(spec, error)) from error
    name = base_files.format_base_name(spec)
    model.name_or_path = name  # PEFT writes it into adapter_config.json, where a local path would be of no use
    if stored:
        console.print_info(f"base {name}: its files hold {stored} weights, which are used as they are")
    return LoadedBase(
        model, tokenizer, folder, name, spec.revision, mark, spec, device, head, stored or spec.quantization, untrained
    )


def load_folder(
    folder: Path, spec: ModelSpec, device: Device, dtype: torch.dtype, head: ClassifierHead | None = None
) -> Any:
    """The model in `folder`, frozen, in evaluation mode: a causal language model, or with `head` a classifier.

    Raises: MemoryShortageError: it is larger than the free memory.
    """
    memory_check.check_load_memory(folder, spec, device, dtype)
    return _load_model(folder, spec, device, dtype, head)[0]


def load_classifier(
    folder: Path, spec: ModelSpec, head: ClassifierHead, device: Device, dtype: torch.dtype
) -> tuple[Any, tuple[str, ...]]:
    """An encoder with `head`, and the names of its modules that are missing in the files, initialized with a fixed seed.

    Raises: MemoryShortageError: it is larger than the free memory.
    """
    memory_check.check_load_memory(folder, spec, device, dtype)
    return _load_classifier(folder, spec, head, device, dtype)


def _load_classifier(
    folder: Path, spec: ModelSpec, head: ClassifierHead, device: Device, dtype: torch.dtype
) -> tuple[Any, tuple[str, ...]]:
    kwargs = _build_load_kwargs(folder, spec, device, dtype)
    # transformers draws missing modules from the global generator; the fork leaves the run's own stream untouched
    with suppress_output(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(HEAD_SEED)
        model, loading_info = CLASSIFIER_CLASSES[head.kind].from_pretrained(
            folder, config=load_config(folder, spec, **_label_maps(head)), dtype=dtype, trust_remote_code=spec.trust_remote_code,
            use_safetensors=True, output_loading_info=True, **kwargs,
        )  # fmt: skip
    if model.config.pad_token_id is None:  # a language model with a head needs it to find the last token of a row
        model.config.pad_token_id = load_tokenizer(folder, spec).pad_token_id
    untrained = tuple(sorted({key.rpartition(".")[0] for key in loading_info["missing_keys"]}))
    return _place_model(model, device.name), untrained


def _build_load_kwargs(
    folder: Path, spec: ModelSpec, device: Device, dtype: torch.dtype, limits: Any = None
) -> dict[str, Any]:
    kwargs = quantization.build_quantization_kwargs(spec.quantization, dtype, device)
    if limits is not None:
        offload_dir = tempfile.TemporaryDirectory(prefix="peftrun-offload-")
        atexit.register(offload_dir.cleanup)  # layers are read from it for as long as the process runs
        kwargs |= {"device_map": "auto", "max_memory": limits, "offload_folder": offload_dir.name}
    elif kwargs or quantization.get_stored_quantization(folder):
        kwargs["device_map"] = {"": device.name}  # quantized weights cannot be moved once they are loaded
    attention = {"attn_implementation": spec.attn_implementation} if spec.attn_implementation else {}
    return kwargs | attention | get_loader_arguments(spec)


def _place_model(model: Any, device: Any) -> Any:
    if getattr(model, "hf_quantizer", None) is None and not getattr(model, "hf_device_map", None):
        model = model.to(device)
    quantization.disable_avx512_repack(model)
    return model.requires_grad_(False).eval()


def dequantize_spec(spec: ModelSpec) -> ModelSpec:
    """The same base model without quantization on load: merges are computed on the weights before rounding."""
    if spec.quantization is not None:
        console.print_info(f"model.quantization={spec.quantization}: this action works on the full-precision base")
    return dataclasses.replace(spec, quantization=None)


def _label_maps(head: ClassifierHead) -> dict[str, Any]:
    return {"id2label": dict(enumerate(head.labels)), "label2id": {name: i for i, name in enumerate(head.labels)}}


def _load_model(
    folder: Path, spec: ModelSpec, device: Device, dtype: torch.dtype, head: ClassifierHead | None
) -> tuple[Any, tuple[str, ...]]:
    if head is not None:
        return _load_classifier(folder, spec, head, device, dtype)
    kwargs = _build_load_kwargs(folder, spec, device, dtype, device.max_memory)
    config = load_config(folder, spec)
    with suppress_output():
        model = _get_model_class(config).from_pretrained(
            folder, config=config, dtype=dtype, trust_remote_code=spec.trust_remote_code, use_safetensors=True, **kwargs
        )
    return _place_model(model, device.name), ()


def _check_structure(folder: Path, spec: ModelSpec, head: ClassifierHead | None) -> None:
    """Raises: ModelError: with `model.arguments` the model has other tensors than its files; transformers would draw or drop them."""
    if not spec.arguments:
        return
    stored, changed = (  # in this order: what the model refuses without its arguments is not refused for them
        {name: tuple(weight.shape) for name, weight in build_empty(folder, model, head).named_parameters()}
        for model in (dataclasses.replace(spec, arguments=None), spec)
    )
    different = sorted(name for name in changed | stored if changed.get(name) != stored.get(name))
    if different:
        raise ModelError(
            f"model.arguments={format_value(spec.arguments)}: the model would then not have the tensors of its files ({', '.join(different[:3])}; "
            f"{len(different)} in all); omit what changes its structure"
        )


def _get_model_class(config: Any) -> Any:
    """The auto class of a language model: decoder-only, or encoder-decoder."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def build_empty(folder: Path, spec: ModelSpec, head: ClassifierHead | None = None) -> Any:
    """The model in `folder` without weights, with `head` as a classifier: all parameters on the meta device, buffers computed."""
    labels = _label_maps(head) if head else {}
    config = load_config(folder, spec, **labels)
    config.dtype = torch.float32
    attention = {"attn_implementation": spec.attn_implementation} if spec.attn_implementation else {}
    # Buffers (rotary frequencies) are in no file, so they are computed for real.
    with (
        explain_refused_arguments(spec, config.model_type),
        suppress_output(),
        init_empty_weights(include_buffers=False),
    ):
        model_class = CLASSIFIER_CLASSES[head.kind] if head else _get_model_class(config)
        return model_class.from_config(config, trust_remote_code=spec.trust_remote_code, **attention).eval()


def check_full_precision(folder: Path, name: str) -> None:
    """Raises: ModelError: the files are quantized; an in-place addition to such weights is lost or garbled (bitsandbytes, quanto)."""
    stored = quantization.get_stored_quantization(folder)
    if stored:
        raise ModelError(
            f"model {name}: is quantized ({stored}), and a merge into it would be lost or garbled; merge into the "
            "full-precision model it was made from: type model.name_or_path=THAT_MODEL allow_base_mismatch=true"
        )


def resolve_base_dir(spec: ModelSpec) -> Path:
    """The folder with the base model's safetensors: local, downloaded from the Hub, or converted once from GGUF; of a base model
    whose chat template or tokens the config changes, a folder in the cache.

    Raises: ModelError: it is missing, is an adapter's folder, or does not allow these changes.
    """
    path = base_location.resolve_model_path(spec)
    is_gguf = path.suffix == ".gguf" and path.is_file()
    folder = gguf.convert_gguf(path) if is_gguf else base_location.fetch_base_dir(spec)
    settings = token_settings.read_token_settings(spec)
    return retokenized_base.resolve(folder, spec, settings) if settings else folder
