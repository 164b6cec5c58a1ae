"""What PEFT leaves out of checkpoints, and training cannot go on without."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from peftrun.errors import ArtifactError

TRAINED_FILE = "trained.safetensors"


def keep_adapter_state(trainer: Any) -> None:
    """Has a Trainer's checkpoints hold the whole state of its adapter."""
    configs = getattr(trainer.model, "peft_config", {}).values()
    if any(config.is_prompt_learning for config in configs):
        _keep_encoder(trainer)
    if any(getattr(config, "velora_config", None) for config in configs):
        _keep_projections(trainer)


def _keep_encoder(trainer: Any) -> None:
    """Of p-tuning, and of a prefix through a projection, PEFT saves the finished prompt, from which its encoder cannot be trained further."""
    net, save = trainer.model, trainer._save

    def save_trained(output_dir: str, state_dict: Any = None) -> None:
        save(output_dir, state_dict=state_dict)
        trained = {name: one.detach().contiguous() for name, one in _get_trained(net).items()}
        save_file(trained, Path(output_dir) / TRAINED_FILE)

    def load_trained(checkpoint: str, model: Any = None) -> None:
        file = Path(checkpoint) / TRAINED_FILE
        if not file.is_file():
            raise ArtifactError(f"{file}: is missing, as an earlier peftrun left it; leave action.resume out")
        found = load_file(file)
        with torch.no_grad():
            for name, one in _get_trained(net).items():
                one.copy_(found[name])

    trainer._save, trainer._load_from_checkpoint = save_trained, load_trained
    trainer._load_best_model = lambda: load_trained(trainer.state.best_model_checkpoint)


def _get_trained(net: Any) -> dict[str, torch.Tensor]:
    return {name: one for name, one in net.named_parameters() if one.requires_grad}


def _keep_projections(trainer: Any) -> None:
    """VeLoRA takes its projections from the first batch that it sees; those of a checkpoint are there already."""
    load = trainer._load_from_checkpoint

    def load_and_mark(*given: Any, **how: Any) -> None:
        load(*given, **how)
        for module in trainer.model.modules():
            for adapter in getattr(module, "lora_velora_initialized", {}):
                module.lora_velora_initialized[adapter] = True

    trainer._load_from_checkpoint = load_and_mark
