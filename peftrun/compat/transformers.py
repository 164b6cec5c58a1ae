"""transformers 5.23: steps of Trainer at which it calls nobody back, and what models say about themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from transformers import masking_utils


class TrainerStep(StrEnum):
    """Methods of Trainer that are wrapped on one trainer."""

    START = "_init_training_state"  # (epoch, batch) to start from, once the checkpoint's state is loaded
    SAVE_MODEL = "save_model"  # gathers the model's part of a checkpoint, where it is sharded
    SAVE = "_save"  # writes it
    SAVE_OPTIMIZER = "_save_optimizer_and_scheduler"
    LOAD = "_load_from_checkpoint"
    LOAD_OPTIMIZER = "_load_optimizer_and_scheduler"
    LOAD_BEST = "_load_best_model"


def get_trainer_step(trainer: Any, step: TrainerStep) -> Callable[..., Any]:
    """The trainer's own method of this step."""
    method: Callable[..., Any] = getattr(trainer, step)
    return method


def replace_trainer_step(trainer: Any, step: TrainerStep, method: Callable[..., Any]) -> None:
    """Makes this trainer call `method` at the step."""
    setattr(trainer, step, method)


def use_one_gpu(arguments: Any) -> Any:
    """The training arguments, of one GPU where this process sees several: Trainer would split each batch over all of them."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def generate_in_step(model: Any) -> None:
    """Makes a model on which accelerate shards the weights (FSDP2) generate until every process has ended: a pass needs them all.

    transformers does so by itself where it shards them.
    """
    model._is_fsdp_managed_module = True


@contextmanager
def average_each_batch(trainer: Any) -> Iterator[None]:
    """Inside, the loss is each batch's own mean: with a count of labels it is the batch's share of all processes."""
    count = trainer._get_num_items_in_batch
    trainer._get_num_items_in_batch = lambda *_: None
    try:
        yield
    finally:
        trainer._get_num_items_in_batch = count


def shifts_labels(trainer: Any) -> bool:
    """Whether position t predicts the label of t + 1, as Trainer derives it from the model's class."""
    return bool(trainer._loss_shifts_labels)


def set_label_shift(trainer: Any, shifted: bool) -> None:
    """Sets it for a model whose class does not say."""
    trainer._loss_shifts_labels = shifted


def is_log_due(trainer: Any) -> bool:
    """Whether Trainer logs after this step, and has not done so."""
    return bool(trainer.control.should_log and trainer.state.global_step > trainer._globalstep_last_logged)


def clear_running_loss(trainer: Any) -> None:
    """Sets the sum of losses since the last log to zero, on the device."""
    trainer._tr_loss.zero_()


def get_attention(model: Any) -> str | None:
    """The attention that a model uses: sdpa, eager, …"""
    name: str | None = model.config._attn_implementation
    return name


@contextmanager
def take_rows_as_unpacked(enabled: bool) -> Iterator[None]:
    """Inside, if enabled, a model without a mask does not look at its positions for texts that are packed into a row.

    The model reads the answer back from the device before its first layer, and the host waits for all that was queued before it.
    """
    find = masking_utils.find_packed_sequence_indices
    if enabled:
        masking_utils.find_packed_sequence_indices = lambda *_: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find


def list_unsaved_keys(model: Any) -> set[str]:
    """Tensors that transformers does not store."""
    return {*(model._keys_to_ignore_on_save or ())}


def list_layer_classes(model: Any) -> list[str]:
    """Names of the classes of its layers, as accelerate shards them."""
    return [*(model._no_split_modules or ())]


def is_stateful(model: Any) -> bool:
    """Whether a model's cache cannot be cut or repeated (Mamba)."""
    return bool(getattr(model, "_is_stateful", False))
