"""Supervised fine-tuning: language models by TRL's SFTTrainer, classifiers by transformers' Trainer."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer
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


def fit(model: Any, tokenizer: Any, rows: list[dict[str, list[int]]], trainer: TrainerSpec, device: Device, *,
        seed: int, max_length: int, out_dir: Path, checkpoint: Path | None, collator: Any = None) -> Fitted:  # fmt: skip
    """Trains what requires a gradient in `model`, in place; logs and checkpoints go below `out_dir`.

    Args: collator: makes batches of a classifier's rows; None: a language model learns.
    Raises: ConfigError: TRL or transformers refuse the arguments. DataError: the loss is no longer a finite number.
    """
    report = Report(out_dir / METRICS)
    try:
        with _own_printing():
            loop = (AnswerTrainer if collator is None else Trainer)(
                model=model,
                args=_arguments(trainer, device, seed, max_length, out_dir),
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                callbacks=[report],
                **({} if collator is None else {"data_collator": collator}),
            )
    except ValueError as error:  # the libraries own the rules between their own arguments
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    if collator is not None:
        # Their losses are means over the batch and pass over the count that accumulation would divide by.
        loop.model_accepts_loss_kwargs = False
    for unwanted in (PrinterCallback, ProgressCallback):
        loop.remove_callback(unwanted)
    try:
        found = loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        report.close()
    model.eval()
    return Fitted(found.global_step, found.training_loss, found.metrics["train_runtime"], int(report.tokens))


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


@contextlib.contextmanager
def _own_printing() -> Iterator[None]:
    """What the libraries print while a trainer is built goes nowhere."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
