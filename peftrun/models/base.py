"""The frozen base: from a Hub id, a folder or an installed package to a model, its tokenizer and its fingerprint."""

import atexit
import dataclasses
import errno
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from peftrun import console
from peftrun.artifacts import base_files, fingerprint, hub_files
from peftrun.artifacts.classifier_head import Head
from peftrun.artifacts.fingerprint import Fingerprint
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.io import atomic_files
from peftrun.models import gguf, memory_check, quantization
from peftrun.models.device import Device
from peftrun.models.tokenizer import check_kind, limit_length, load_tokenizer, unreadable
from peftrun.system.silence import quiet

CLASSIFIERS = {"seq_cls": AutoModelForSequenceClassification, "token_cls": AutoModelForTokenClassification}
HEAD_SEED = 0  # an untrained head is the same wherever it is made


@dataclass
class Base:
    """A loaded base.

    Attributes:
        model: the frozen transformers model, in evaluation mode, on its device.
        tokenizer: with a pad token.
        folder: where its safetensors lie.
        name: portable: a Hub id, `package:file`, or a folder's last name.
        spec: what it was loaded by.
        head: of a classifier; None for a language model.
        held: in what few bits it is held; None: in full precision.
        untrained: modules of a classifier that the base's files do not hold: its head.
        device: on which it was loaded.
    """

    model: Any
    tokenizer: Any
    folder: Path
    name: str
    revision: str | None
    fingerprint: Fingerprint
    spec: ModelSpec
    device: Device
    head: Head | None = None
    held: str | None = None
    untrained: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """For the record and `peftrun.json`."""
        found = {"name": self.name, "revision": self.revision, "fingerprint": self.fingerprint.as_dict()}
        return found | ({"held_in": self.held} if self.held else {})

    def size(self) -> int:
        """Bytes of its weight files."""
        return atomic_files.size_of(self.folder)


def load_base(spec: ModelSpec, device: Device, dtype: torch.dtype | None = None, head: Head | None = None) -> Base:
    """The base that `spec` names, in `dtype` (the device's own if None), on `device`; with `head` as a classifier.

    Raises: ModelError: it is not there, is of the other kind (language model, encoder), or holds pickles only.
        MemoryShortageError: it is larger than what is free.
    """
    folder = locate(spec)
    held = quantization.held_in(folder)
    quantization.check(held, spec.quantization, spec.name_or_path, dtype or device.dtype)
    memory_check.check_load(folder, spec, device, dtype or device.dtype)
    mark = fingerprint.of_model(folder)
    try:
        check_kind(AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code), spec, head)
        model, untrained = _load(folder, spec, device, dtype or device.dtype, head)
        tokenizer = load_tokenizer(folder, spec)
        if head is not None:
            limit_length(tokenizer, model.config)
    except (ValueError, OSError, ImportError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:  # not the base's fault
            raise
        raise ModelError(unreadable(spec, error)) from error
    name = portable_name(spec)
    model.name_or_path = name  # PEFT writes it into adapter_config.json
    if held:
        console.say(f"base {name}: its files hold {held} weights, which are used as they are")
    return Base(
        model, tokenizer, folder, name, spec.revision, mark, spec, device, head, held or spec.quantization, untrained
    )


def load_folder(folder: Path, spec: ModelSpec, device: Device, dtype: torch.dtype, head: Head | None = None) -> Any:
    """A model read from safetensors in `folder`, frozen, in evaluation mode: a causal language model, or a classifier.

    Raises: MemoryShortageError: it is larger than what is free.
    """
    memory_check.check_load(folder, spec, device, dtype)
    return _load(folder, spec, device, dtype, head)[0]


def load_classifier(
    folder: Path, spec: ModelSpec, head: Head, device: Device, dtype: torch.dtype
) -> tuple[Any, tuple[str, ...]]:
    """An encoder with `head`, and the names of its modules that are not in the files and so are drawn from a fixed seed.

    Raises: MemoryShortageError: it is larger than what is free.
    """
    memory_check.check_load(folder, spec, device, dtype)
    return _load_classifier(folder, spec, head, device, dtype)


def _load_classifier(
    folder: Path, spec: ModelSpec, head: Head, device: Device, dtype: torch.dtype
) -> tuple[Any, tuple[str, ...]]:
    kwargs = _kwargs(folder, spec, device.name, dtype)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(HEAD_SEED)
        model, seen = CLASSIFIERS[head.kind].from_pretrained(
            folder, dtype=dtype, trust_remote_code=spec.trust_remote_code, use_safetensors=True, output_loading_info=True,
            **_names(head), **kwargs,
        )  # fmt: skip
    if model.config.pad_token_id is None:  # a language model with a head reads it to find the last token of a row
        model.config.pad_token_id = load_tokenizer(folder, spec).pad_token_id
    untrained = tuple(sorted({key.rpartition(".")[0] for key in seen["missing_keys"]}))
    return _placed(model, device.name), untrained


def _kwargs(folder: Path, spec: ModelSpec, device: Any, dtype: torch.dtype, limits: Any = None) -> dict[str, Any]:
    kwargs = quantization.settings(spec.quantization, dtype)
    if limits is not None:
        kwargs |= {"device_map": "auto", "max_memory": limits, "offload_folder": str(_waiting_room())}
    elif kwargs or quantization.held_in(folder):
        kwargs["device_map"] = {"": str(device)}  # what is quantised cannot be moved afterwards
    return kwargs | ({"attn_implementation": spec.attn_implementation} if spec.attn_implementation else {})


def _placed(model: Any, device: Any) -> Any:
    if getattr(model, "hf_quantizer", None) is None and not getattr(model, "hf_device_map", None):
        model = model.to(device)
    quantization.settle(model)
    return model.requires_grad_(False).eval()


def _waiting_room() -> Path:
    """A folder for layers that wait on disk; it goes when the process does."""
    room = tempfile.TemporaryDirectory(prefix="peftrun-offload-")
    atexit.register(room.cleanup)
    return Path(room.name)


def full_precision(spec: ModelSpec) -> ModelSpec:
    """The same base, not quantised: what is merged goes into the weights as they were before rounding."""
    if spec.quantization is not None:
        console.say(f"model.quantization={spec.quantization}: this action works on the full-precision base")
    return dataclasses.replace(spec, quantization=None)


def _names(head: Head) -> dict[str, Any]:
    return {"id2label": dict(enumerate(head.labels)), "label2id": {name: i for i, name in enumerate(head.labels)}}


def _load(
    folder: Path, spec: ModelSpec, device: Device, dtype: torch.dtype, head: Head | None
) -> tuple[Any, tuple[str, ...]]:
    if head is None:
        return _load_causal(folder, spec, device, dtype), ()
    return _load_classifier(folder, spec, head, device, dtype)


def _load_causal(folder: Path, spec: ModelSpec, device: Device, dtype: torch.dtype) -> Any:
    kwargs = _kwargs(folder, spec, device.name, dtype, device.max_memory)
    with quiet():
        model = _kind_of(folder, spec).from_pretrained(
            folder, dtype=dtype, trust_remote_code=spec.trust_remote_code, use_safetensors=True, **kwargs
        )
    return _placed(model, device.name)


def _kind_of(folder: Path, spec: ModelSpec) -> Any:
    """The class of a language model: with a decoder alone, or with an encoder too."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def empty(folder: Path, spec: ModelSpec, head: Head | None = None) -> Any:
    """The model in `folder` without weights, with `head` as a classifier: every parameter on the meta device, buffers as computed."""
    names = _names(head) if head else {}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **names)
    config.dtype = torch.float32
    attention = {"attn_implementation": spec.attn_implementation} if spec.attn_implementation else {}
    with quiet(), init_empty_weights(include_buffers=False):
        made = CLASSIFIERS[head.kind] if head else _kind_of(folder, spec)
        return made.from_config(config, trust_remote_code=spec.trust_remote_code, **attention).eval()


def check_full_precision(folder: Path, name: str) -> None:
    """Raises: ModelError: the files are quantised: what is added to them in place is lost or garbled (bitsandbytes, quanto)."""
    held = quantization.held_in(folder)
    if held:
        raise ModelError(
            f"model {name}: is quantised ({held}), and a merge into it would be lost or garbled; merge into the "
            "full-precision model it was made from: type model.name_or_path=THAT_MODEL allow_base_mismatch=true"
        )


def portable_name(spec: ModelSpec) -> str:
    """A name that means the same on another machine: never an absolute path."""
    if spec.package:
        return f"{spec.package}:{spec.name_or_path}"
    return Path(spec.name_or_path).name if Path(spec.name_or_path).expanduser().exists() else spec.name_or_path


def locate(spec: ModelSpec) -> Path:
    """The folder with the base's safetensors: found, fetched from the Hub, or converted once from GGUF."""
    given = base_files.given(spec)
    if given.suffix == ".gguf" and given.is_file():
        return gguf.converted(given)
    folder = given.resolve() if given.is_dir() else hub_files.from_hub(spec)
    stray = hub_files.of_an_adapter(folder, spec.name_or_path)
    if stray:
        raise ModelError(stray)
    return folder
