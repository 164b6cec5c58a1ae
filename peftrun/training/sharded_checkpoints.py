"""Checkpoints of an adapter that is trained on a sharded base model (FSDP2), in the form that one process writes.

An adapter and its optimizer's state are small, so they are gathered: whatever the number of processes that wrote a checkpoint, any number
resumes it. Of the base model, which transformers would gather too, nothing is written. With lora=none transformers' own, sharded form is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from peftrun.adapters import sharded
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.compat.transformers import TrainerStep, get_trainer_step, replace_trainer_step


def write_whole_checkpoints(trainer: Any) -> None:
    """Makes a Trainer with FSDP2 save and load the checkpoints of an adapter as one process does."""
    if not trainer.is_fsdp_enabled or not hasattr(trainer.model, "peft_config"):
        return
    save_optimizer = get_trainer_step(trainer, TrainerStep.SAVE_OPTIMIZER)
    load_optimizer = get_trainer_step(trainer, TrainerStep.LOAD_OPTIMIZER)

    def save_model(output_dir: str, _internal_call: bool = False) -> None:
        tensors = sharded.gather_adapter(trainer.model)
        with _unshard_prompt_encoder(trainer.model):
            get_trainer_step(trainer, TrainerStep.SAVE)(output_dir, state_dict=tensors)

    def save_whole_optimizer(output_dir: str) -> None:
        state = _gather_state(trainer.optimizer.state_dict())
        with _act_as_one_process(trainer, "state_dict", lambda: state):
            save_optimizer(output_dir)

    def load_model(checkpoint: str, model: Any = None) -> None:
        sharded.load_adapter(trainer.model, load_file(Path(checkpoint) / ADAPTER_WEIGHTS))

    def load_whole_optimizer(checkpoint: str | None) -> None:
        load_state = trainer.optimizer.load_state_dict
        with _act_as_one_process(
            trainer, "load_state_dict", lambda state: load_state(_shard_state(state, trainer.optimizer))
        ):
            load_optimizer(checkpoint)

    replace_trainer_step(trainer, TrainerStep.SAVE_MODEL, save_model)
    replace_trainer_step(trainer, TrainerStep.SAVE_OPTIMIZER, save_whole_optimizer)
    replace_trainer_step(trainer, TrainerStep.LOAD, load_model)
    replace_trainer_step(trainer, TrainerStep.LOAD_OPTIMIZER, load_whole_optimizer)
    replace_trainer_step(trainer, TrainerStep.LOAD_BEST, lambda: load_model(trainer.state.best_model_checkpoint))


@contextmanager
def _unshard_prompt_encoder(net: Any) -> Iterator[None]:
    """Within it the weights outside the base model's layers are whole: PEFT computes the virtual tokens that it saves."""
    if not any(config.is_prompt_learning for config in net.peft_config.values()):
        yield
        return
    net.unshard()
    try:
        yield
    finally:
        net.reshard()


@contextmanager
def _act_as_one_process(trainer: Any, method: str, replacement: Any) -> Iterator[None]:
    """Within it the Trainer takes its way without FSDP, on an optimizer whose `method` gives or takes whole tensors."""
    setattr(trainer.optimizer, method, replacement)
    trainer.is_fsdp_enabled = False
    try:
        yield
    finally:
        trainer.is_fsdp_enabled = True
        delattr(trainer.optimizer, method)


def _gather_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer with whole tensors. A collective operation."""
    gathered = {
        index: {key: sharded.gather_tensor(value) if torch.is_tensor(value) else value for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": gathered}


def _shard_state(state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """The state with each tensor sharded as its parameter is; those of another shape, such as a count of steps, stay whole."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    spread = {
        index: {
            key: sharded.shard_like(value, parameters[index]) if torch.is_tensor(value) else value
            for key, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": spread}
