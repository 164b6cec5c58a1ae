"""A model all of whose weights are trained, to disk: what can fail there is tried before the first step, what was written is compared."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from peftrun.artifacts.run_layout import MODEL
from peftrun.errors import ModelError, ProofError
from peftrun.io import atomic_files
from peftrun.models import base as base_models
from peftrun.models.device import Device
from peftrun.system.silence import suppress_output
from peftrun.training import distributed
from peftrun.training.session import TrainingSession


def check_savable(job: TrainingSession, net: Any) -> None:
    """In the process that saves: writes into the run folder all that goes beside the weights, and takes it away again.

    Raises: ModelError: the base is such that transformers refuses to save it. ArtifactError: the folder cannot be written.
    """
    folder = job.out_dir
    if not distributed.is_main_process():
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as trial, suppress_output():
            _write_configs(net, job.base.tokenizer, Path(trial))
            remove_tied_weights_from_state_dict(dict(net.state_dict()), net)
    except OSError as error:
        raise atomic_files.ArtifactError(
            f"{folder}: could not be written ({error}); free space there, or type {atomic_files.folder_key(folder)}=FOLDER"
        ) from error
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model.name_or_path={job.spec.model.name_or_path}: could not be saved once it is trained ({reason}); "
            f"correct it in a copy of {job.base.folder} and name that, or train an adapter: type lora=lora"
        ) from error


def _write_configs(net: Any, tokenizer: Any, folder: Path) -> None:
    net.config.save_pretrained(folder)
    if net.can_generate():
        net.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save(job: TrainingSession, net: Any) -> Path:
    """The folder with the trained model and its tokenizer.

    Raises: ArtifactError: the disk refused. ProofError: what lies there is not what was trained; it is kept under another name.
    """
    target = job.out_dir / MODEL
    with atomic_files.create_folder(target, kept_if=ProofError) as folder:
        net.save_pretrained(folder)
        job.base.tokenizer.save_pretrained(folder)
        _check_saved(job, net, folder, target)
    return target


def _check_saved(job: TrainingSession, net: Any, folder: Path, target: Path) -> None:
    trained = net.state_dict()
    stored = dict(_iter_tensors(folder))
    if (
        not stored.keys() <= trained.keys()
    ):  # transformers has given them the names, or the shapes, of the base's own files
        cpu = Device("cpu", net.dtype, "")
        stored = base_models.load_folder(folder, job.spec.model, cpu, net.dtype, job.base.head).state_dict()
    written = {trained[name].data_ptr() for name in stored}
    unsaved = trained.keys() - stored.keys() - {*(net._keys_to_ignore_on_save or ())}
    missing = sorted(name for name in unsaved if trained[name].data_ptr() not in written)
    other = sorted(name for name, value in stored.items() if not torch.equal(value.cpu(), trained[name].cpu()))
    for what, names in {"is missing": missing, "differs from what was trained": other}.items():
        if names:
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise ProofError(
                f"{target}: {names[0]}{more}: {what}; kept as {atomic_files.find_rejected_path(target).name}"
            )


def _iter_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the files, mapped from them."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            yield from ((name, tensors.get_tensor(name)) for name in tensors.keys())  # noqa: SIM118
