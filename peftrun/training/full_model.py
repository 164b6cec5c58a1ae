"""Saving a model whose weights are all trained: errors are found before the first step, and what was written is compared."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from peftrun.artifacts.run_layout import MODEL
from peftrun.compat.transformers import list_unsaved_keys
from peftrun.errors import ModelError, ProofError
from peftrun.io import atomic_files
from peftrun.models import base as base_models
from peftrun.models.device import Device
from peftrun.system.silence import suppress_output
from peftrun.training import distributed
from peftrun.training.session import TrainingSession


def check_savable(session: TrainingSession, model: Any) -> None:
    """In the main process: writes the model's files other than weights into the run folder, and removes them again.

    Raises: ModelError: transformers refuses to save this base model. ArtifactError: the folder cannot be written.
    """
    folder = session.out_dir
    if not distributed.is_main_process():
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as trial, suppress_output():
            model.config.save_pretrained(trial)
            if model.can_generate():
                model.generation_config.save_pretrained(trial)
            session.base.tokenizer.save_pretrained(Path(trial))
            remove_tied_weights_from_state_dict(dict(model.state_dict()), model)
    except OSError as error:
        raise atomic_files.ArtifactError(
            f"{folder}: could not be written ({error}); free space there, or type {atomic_files.folder_key(folder)}=FOLDER"
        ) from error
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model.name_or_path={session.spec.model.name_or_path}: could not be saved once it is trained ({reason}); "
            f"correct it in a copy of {session.base.folder} and name that, or train an adapter: type lora=lora"
        ) from error


def save(session: TrainingSession, model: Any) -> Path:
    """The folder with the trained model and its tokenizer.

    Raises: ArtifactError: the disk refused. ProofError: the files are not what was trained; they are kept under another name.
    """
    target = session.out_dir / MODEL
    with atomic_files.create_folder(target, kept_if=ProofError) as folder:
        model.save_pretrained(folder)
        session.base.tokenizer.save_pretrained(folder)
        _check_saved(session, model, folder, target)
    return target


def _check_saved(session: TrainingSession, model: Any, folder: Path, target: Path) -> None:
    """Compares every stored tensor with the trained one, and looks for tensors that are not stored."""
    trained = model.state_dict()
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            stored |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    if not stored.keys() <= trained.keys():
        # transformers stores them with the names and shapes of the base model's own files: load it to have its own again.
        cpu = Device("cpu", model.dtype, "")
        stored = base_models.load_folder(folder, session.spec.model, cpu, model.dtype, session.base.head).state_dict()
    # A tied weight is stored once, under one of its names.
    stored_pointers = {trained[name].data_ptr() for name in stored}
    unsaved = trained.keys() - stored.keys() - list_unsaved_keys(model)
    missing = sorted(name for name in unsaved if trained[name].data_ptr() not in stored_pointers)
    different = sorted(name for name, value in stored.items() if not torch.equal(value.cpu(), trained[name].cpu()))
    for problem, names in {"is missing": missing, "differs from what was trained": different}.items():
        if names:
            others = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise ProofError(
                f"{target}: {names[0]}{others}: {problem}; kept as {atomic_files.find_rejected_path(target).name}"
            )
