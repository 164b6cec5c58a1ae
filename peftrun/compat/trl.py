"""trl 1.16: where SFTTrainer keeps what it logs."""

from typing import Any


def record_train_metrics(trainer: Any, accuracy: float, tokens: int) -> None:
    """Adds a batch to SFTTrainer's log: its token accuracy, and its tokens to those seen. TRL does it inside of its own loss alone."""
    metrics = trainer._metrics["train"]
    trainer._total_train_tokens += tokens
    metrics["mean_token_accuracy"].append(accuracy)
    metrics["num_tokens"] = [trainer._total_train_tokens]
