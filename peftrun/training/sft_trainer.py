"""Supervised loops: causal language models by TRL's SFTTrainer, all others by transformers' Trainer."""

from typing import Any

import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, DataCollatorForTokenClassification, Trainer
from trl import SFTConfig

from peftrun.adapters import traits
from peftrun.compat.transformers import use_one_gpu
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.training.completion_loss import CompletionLossTrainer


def build_arguments(data: Any, arguments: dict[str, Any]) -> SFTConfig:
    """Training arguments by name as TRL's config."""
    # Rows were cut to length before; without padding TRL wants max_length=None to see that they need no cutting.
    return use_one_gpu(SFTConfig(**arguments, max_length=None if arguments["padding_free"] else data.max_length))


def build_trainer(model: Any, data: Any, arguments: dict[str, Any], **options: Any) -> Trainer:
    """The Trainer for supervised rows (a `fit.TrainingData`). Args: arguments: training arguments by name."""
    is_tagger = isinstance(data.collator, DataCollatorForTokenClassification)
    if (model.config.is_encoder_decoder or is_tagger) and not traits.adds_to_loss(model):
        options["compute_loss_func"] = _compute_mean_loss
    trainer_class = CompletionLossTrainer if data.collator is None else Trainer
    trainer = trainer_class(
        model=model,
        args=build_arguments(data, arguments),
        train_dataset=Dataset.from_list(data.rows),
        processing_class=data.tokenizer,
        **({} if data.collator is None else {"data_collator": data.collator}),
        **options,
    )
    if model.config.is_encoder_decoder or not isinstance(data.collator, DataCollatorForSeq2Seq | None):
        # These models' own losses are means over a batch: they ignore the token count that Trainer would divide by
        # with gradient accumulation.
        trainer.model_accepts_loss_kwargs = False
    return trainer


def _compute_mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Nats per token over all rows of a step.

    The loss of T5 and of a tagger is a mean over each micro-batch of an accumulated step, which weights tokens unequally.
    """
    total = torch.nn.functional.cross_entropy(
        outputs.logits.float().flatten(0, 1),  # (B, T, V) → (B·T, V)
        labels.flatten(),  # (B·T,)
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
    return total / ((labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch)
