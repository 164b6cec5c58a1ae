"""SFTTrainer that computes logits only at positions with a label, also where TRL's own kernel cannot.

On a GPU with Triton, TRL computes logits only where there is a label. Elsewhere it computes all of them: with a vocabulary
of 49,152 tokens and answers of a few tokens that is half of a training step. This is the override of `compute_loss` that
TRL's documentation recommends for a custom loss; the loss itself is the same sum over the same tokens.

Shapes: B rows, T tokens, V vocabulary, K kept positions.
"""

import inspect
from typing import Any

import torch
from trl import SFTTrainer

from peftrun.adapters import traits
from peftrun.compat.trl import record_train_metrics
from peftrun.tasks.length_checks import IGNORE_INDEX

MAX_LABEL_SHARE = 0.5  # share of positions above which selecting them saves too little


class CompletionLossTrainer(SFTTrainer):
    """Same loss and gradients as SFTTrainer, with less computation where prompts are long and answers short."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The summed negative log-likelihood of the labels, in nats, divided by `num_items_in_batch` tokens."""
        keep = self._select_positions(inputs, return_outputs)  # (K,)
        if keep is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, keep + 1]  # (B, K): position t predicts token t + 1
        model_inputs = {key: value for key, value in inputs.items() if key != "labels"}
        logits = model(**model_inputs, use_cache=False, logits_to_keep=keep).logits.float()  # (B, K, V)
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        count = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = (
                loss * self.accelerator.num_processes
            )  # the count is of all processes, and DDP averages over them again
        # Padding is not counted; rows that are concatenated without padding have no mask.
        mask = inputs.get("attention_mask")
        num_tokens = torch.tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()
        self._record_metrics(logits.detach(), labels, num_tokens)
        return loss

    def _select_positions(self, inputs: dict[str, Any], return_outputs: bool) -> torch.Tensor | None:
        """(K,): positions whose next token has a label in any row; None where TRL's own way is as fast, or needed."""
        is_plain_loss = (
            not return_outputs
            and self.label_smoother is None
            and self.args.loss_type == "nll"
            and not self.aux_loss_enabled
            and not traits.adds_to_loss(self.accelerator.unwrap_model(self.model))
        )
        if not is_plain_loss or not self.model.training or inputs["labels"].device.type == "cuda":
            return None
        net = self.accelerator.unwrap_model(self.model)
        base_model = net.get_base_model() if hasattr(net, "get_base_model") else net
        if "logits_to_keep" not in inspect.signature(base_model.forward).parameters:
            return None
        has_label = (inputs["labels"][:, 1:] != IGNORE_INDEX).any(0)  # (B, T - 1) → (T - 1,)
        # All processes must take the same branch: each branch gathers other metrics, and would wait forever for the rest.
        saves_time = self.accelerator.gather(has_label.float().mean()[None] < MAX_LABEL_SHARE).all()
        return has_label.nonzero()[:, 0] if saves_time else None

    def _record_metrics(self, logits: torch.Tensor, labels: torch.Tensor, num_tokens: torch.Tensor) -> None:
        """The metrics that SFTTrainer's own loss records for the log: tokens seen, and accuracy of the likeliest token."""
        has_label = labels != IGNORE_INDEX  # (B, K)
        correct = (logits.argmax(-1) == labels) & has_label
        accuracy = (correct.sum() / has_label.sum().clamp(min=1)).item()
        record_train_metrics(self, accuracy, int(self.accelerator.gather_for_metrics(num_tokens).sum().item()))
