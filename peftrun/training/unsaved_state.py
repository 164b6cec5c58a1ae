"""State that PEFT leaves out of checkpoints though training cannot be resumed without it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from peftrun.adapters import sharded
from peftrun.compat.transformers import TrainerStep, get_trainer_step, replace_trainer_step
from peftrun.errors import ArtifactError
from peftrun.training import distributed

TRAINED_FILE = "trained.safetensors"


def keep_adapter_state(trainer: Any) -> None:
    """Makes a Trainer's checkpoints hold the whole state of its adapter."""
    configs = getattr(trainer.model, "peft_config", {}).values()
    if any(config.is_prompt_learning for config in configs):
        _keep_encoder(trainer)
    if any(getattr(config, "velora_config", None) for config in configs):
        _keep_projections(trainer)


def _keep_encoder(trainer: Any) -> None:
    """Stores every trained tensor beside PEFT's files.

    Of p-tuning, and of prefix tuning through a projection, PEFT saves the virtual tokens that the prompt encoder computes:
    the encoder itself cannot be recovered from them.
    """
    net, save = trainer.model, get_trainer_step(trainer, TrainerStep.SAVE)

    def save_trained(output_dir: str, state_dict: Any = None) -> None:
        save(output_dir, state_dict=state_dict)
        if not distributed.is_main_process():
            return
        tensors = {name: parameter.detach().contiguous() for name, parameter in _get_trained(net).items()}
        save_file(tensors, Path(output_dir) / TRAINED_FILE)

    def load_trained(checkpoint: str, model: Any = None) -> None:
        file = Path(checkpoint) / TRAINED_FILE
        if not file.is_file():
            raise ArtifactError(
                f"{file}: is missing, since an early version of peftrun wrote this checkpoint; leave action.resume out"
            )
        tensors = load_file(file)
        for name, parameter in _get_trained(net).items():
            sharded.copy_tensor(parameter, tensors[name])

    replace_trainer_step(trainer, TrainerStep.SAVE, save_trained)
    replace_trainer_step(trainer, TrainerStep.LOAD, load_trained)
    replace_trainer_step(trainer, TrainerStep.LOAD_BEST, lambda: load_trained(trainer.state.best_model_checkpoint))


def _get_trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _keep_projections(trainer: Any) -> None:
    """Marks VeLoRA's projections as initialized after a checkpoint is loaded: else the next batch would replace them."""
    load = get_trainer_step(trainer, TrainerStep.LOAD)

    def load_and_mark(*args: Any, **kwargs: Any) -> None:
        load(*args, **kwargs)
        for module in trainer.model.modules():
            for adapter in getattr(module, "lora_velora_initialized", {}):
                module.lora_velora_initialized[adapter] = True

    replace_trainer_step(trainer, TrainerStep.LOAD, load_and_mark)
