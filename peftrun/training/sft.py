"""Supervised loops: language models by TRL's SFTTrainer, the others by transformers' Trainer."""

from typing import Any

from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig

from peftrun.training.answer_loss import AnswerTrainer


def loop(model: Any, lesson: Any, given: dict[str, Any], **common: Any) -> Trainer:
    """The loop for a supervised lesson. `given`: training arguments by name."""
    collator = {} if lesson.collator is None else {"data_collator": lesson.collator}
    made = AnswerTrainer if lesson.collator is None else Trainer
    return made(
        model=model,
        args=SFTConfig(**given, max_length=lesson.max_length),
        train_dataset=Dataset.from_list(lesson.rows),
        processing_class=lesson.tokenizer,
        **collator,
        **common,
    )
