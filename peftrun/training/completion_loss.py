"""SFTTrainer that computes logits only where there is something to learn, also where TRL's kernel cannot.

On a GPU with Triton, TRL scores only positions that carry a label. Elsewhere it scores every position, and with a
vocabulary of 49,152 and an answer of a few tokens that is half of a training step. This is the override that TRL's own
documentation recommends for a loss of one's own; the loss itself is the same sum over the same tokens.
"""

import inspect
from typing import Any

import torch
from trl import SFTTrainer

from peftrun.adapters import traits
from peftrun.tasks.length_checks import IGNORE_INDEX

MAX_LABEL_SHARE = 0.5  # share of positions above which picking them out saves too little


class CompletionLossTrainer(SFTTrainer):
    """Same loss and gradients as SFTTrainer; less arithmetic where prompts are long and answers short."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss: summed negative log-likelihood of the labels, in nats, over `num_items_in_batch` tokens."""
        keep = self._select_positions(inputs, return_outputs)
        if keep is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, keep + 1]
        rest = {key: value for key, value in inputs.items() if key != "labels"}
        logits = model(**rest, use_cache=False, logits_to_keep=keep).logits.float()
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        count = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # data-parallel averaging divides by it again
        self._record_metrics(logits.detach(), labels, self._count_seen_tokens(inputs))
        return loss

    def _select_positions(self, inputs: dict[str, Any], return_outputs: bool) -> torch.Tensor | None:
        """Positions, in any row, whose next token is learned; None where TRL's own way is as good or needed."""
        plain = (
            not return_outputs
            and self.label_smoother is None
            and self.args.loss_type == "nll"
            and not self.aux_loss_enabled
            and not traits.adds_to_loss(self.accelerator.unwrap_model(self.model))
        )
        if not plain or not self.model.training or inputs["labels"].device.type == "cuda":
            return None
        if "logits_to_keep" not in inspect.signature(self._get_base_forward()).parameters:
            return None
        learned = (inputs["labels"][:, 1:] != IGNORE_INDEX).any(0)
        # All processes go the same way: each way gathers other figures, and one that went alone would wait for the others for ever.
        worth = self.accelerator.gather(learned.float().mean()[None] < MAX_LABEL_SHARE).all()
        return learned.nonzero()[:, 0] if worth else None

    def _get_base_forward(self) -> Any:
        net = self.accelerator.unwrap_model(self.model)
        return (net.get_base_model() if hasattr(net, "get_base_model") else net).forward

    @staticmethod
    def _count_seen_tokens(inputs: dict[str, Any]) -> torch.Tensor:
        """How many tokens a batch holds, padding left out; rows that stand one behind another have none."""
        mask = inputs.get("attention_mask")
        return torch.tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()

    def _record_metrics(self, logits: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor) -> None:
        """What SFTTrainer's own loss notes for its log: tokens seen, share of labels that are the first choice."""
        learned = labels != IGNORE_INDEX
        right = (logits.argmax(-1) == labels) & learned
        self._metrics["train"]["mean_token_accuracy"].append((right.sum() / learned.sum().clamp(min=1)).item())
        self._total_train_tokens += int(self.accelerator.gather_for_metrics(seen).sum().item())
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
