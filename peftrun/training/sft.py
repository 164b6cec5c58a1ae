"""Supervised fine-tuning: language models by TRL's SFTTrainer, classifiers by transformers' Trainer."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, PrinterCallback, ProgressCallback, Trainer
from trl import SFTConfig

from peftrun.artifacts import CHECKPOINTS, METRICS
from peftrun.device import Device
from peftrun.errors import ConfigError
from peftrun.schema import TrainerSpec
from peftrun.training.answer_loss import AnswerTrainer
from peftrun.training.callbacks import Report


@dataclass(frozen=True)
class Fitted:
    """How training went. `train_loss` is the mean over all steps."""

    steps: int
    train_loss: float
    seconds: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Method:
    """What an adapter's method asks of the loop.

    Attributes:
        optimizer: makes its own optimiser of (class, arguments) that the loop would use; None returned: that one will do.
        each_step: called with the number of each step once the weights have moved.
    """

    optimizer: Callable[[type, dict[str, Any]], Any] | None = None
    each_step: Callable[[int], None] | None = None


PLAIN = Method()
ROUTING = ("output_router_logits", "router_aux_loss_coef")


def steps(trainer: TrainerSpec, rows: int) -> int:
    """Optimiser steps of a run over so many rows."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    batches = math.ceil(rows / trainer.per_device_train_batch_size)
    return math.ceil(max(1, batches // trainer.gradient_accumulation_steps) * trainer.num_train_epochs)


def fit(model: Any, tokenizer: Any, rows: list[dict[str, list[int]]], trainer: TrainerSpec, device: Device, *,
        seed: int, max_length: int, out_dir: Path, checkpoint: Path | None, collator: Any = None,
        method: Method = PLAIN) -> Fitted:  # fmt: skip
    """Trains what requires a gradient in `model`, in place; logs and checkpoints go below `out_dir`.

    Args: collator: makes batches for transformers' own Trainer; None: TRL's, for language models.
    Raises: ConfigError: TRL or transformers refuse the arguments. DataError: the loss is no longer a finite number.
    """
    report = Report(out_dir / METRICS, method.each_step)
    arguments = _arguments(trainer, device, seed, max_length, out_dir)
    routing = {key: getattr(model.config, key) for key in ROUTING if hasattr(model.config, key)}
    learned = [(one, one.data) for one in model.parameters() if one.requires_grad]
    try:
        with _own_printing():
            loop = (AnswerTrainer if collator is None else Trainer)(
                model=model,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                callbacks=[report],
                optimizers=(_optimizer(model, arguments, method), None),
                **({} if collator is None else {"data_collator": collator}),
            )
    except ValueError as error:  # the libraries own the rules between their own arguments
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    for one, value in learned:
        one.data = value  # TRL has rounded an adapter on a quantised base to bfloat16, and what is saved would answer otherwise
    if collator is not None and not isinstance(collator, DataCollatorForSeq2Seq):
        # Classifiers: their losses are means over the batch and pass over the count that accumulation would divide by.
        loop.model_accepts_loss_kwargs = False
    for unwanted in (PrinterCallback, ProgressCallback):
        loop.remove_callback(unwanted)
    try:
        found = loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        report.close()
        _as_before(model, routing)
    model.eval()
    return Fitted(found.global_step, found.training_loss, found.metrics["train_runtime"], int(report.tokens))


def _optimizer(model: Any, arguments: SFTConfig, method: Method) -> Any:
    return method.optimizer(*Trainer.get_optimizer_cls_and_kwargs(arguments, model)) if method.optimizer else None


def _arguments(trainer: TrainerSpec, device: Device, seed: int, max_length: int, out_dir: Path) -> SFTConfig:
    return SFTConfig(
        **dataclasses.asdict(trainer),
        output_dir=str(out_dir / CHECKPOINTS),
        seed=seed,
        data_seed=seed,
        max_length=max_length,
        # The base is already in its dtype. On a GPU autocast also computes the float32 adapter in it; on a CPU that costs more than it saves.
        bf16=device.name == "cuda" and device.dtype == torch.bfloat16,
        fp16=device.dtype == torch.float16,
        use_cpu=device.name == "cpu",
        dataloader_pin_memory=device.name == "cuda",
        disable_tqdm=True,
        report_to="none",
        logging_nan_inf_filter=False,  # the default hides a loss that is no number
    )


def _as_before(model: Any, routing: dict[str, Any]) -> None:
    """TRL has a mixture of experts return its router's choices, which fails where a cache is used."""
    for key, value in routing.items():
        setattr(model.config, key, value)


@contextlib.contextmanager
def _own_printing() -> Iterator[None]:
    """What the libraries print while a trainer is built goes nowhere."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
