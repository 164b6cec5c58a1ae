"""Supervised loops: language models by TRL's SFTTrainer, the others by transformers' Trainer."""

from typing import Any

import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, DataCollatorForTokenClassification, Trainer
from trl import SFTConfig

from peftrun.adapters import traits
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.training.completion_loss import CompletionLossTrainer


def _compute_mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Nats a token over all rows of a step. T5's own loss, and a tagger's, is a mean over each part of an accumulated batch."""
    total = torch.nn.functional.cross_entropy(
        outputs.logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total / ((labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch)


def build_arguments(lesson: Any, given: dict[str, Any]) -> SFTConfig:
    """Training arguments by name as TRL's config."""
    # Rows were cut to length before; without padding TRL wants to hear that they need no cutting.
    return SFTConfig(**given, max_length=None if given["padding_free"] else lesson.max_length)


def loop(model: Any, lesson: Any, given: dict[str, Any], **common: Any) -> Trainer:
    """The loop for a supervised lesson. `given`: training arguments by name."""
    tags = isinstance(lesson.collator, DataCollatorForTokenClassification)
    if (model.config.is_encoder_decoder or tags) and not traits.adds_to_loss(model):
        common["compute_loss_func"] = _compute_mean_loss
    collator = {} if lesson.collator is None else {"data_collator": lesson.collator}
    made = CompletionLossTrainer if lesson.collator is None else Trainer
    trainer = made(
        model=model,
        args=build_arguments(lesson, given),
        train_dataset=Dataset.from_list(lesson.rows),
        processing_class=lesson.tokenizer,
        **collator,
        **common,
    )
    if model.config.is_encoder_decoder or not isinstance(lesson.collator, DataCollatorForSeq2Seq | None):
        # The models' own losses are means over a batch, and pass over the count that accumulation would divide by.
        trainer.model_accepts_loss_kwargs = False
    return trainer
