"""SFTTrainer that computes logits only at positions with a label, and does not wait for the device during a step.

On a GPU with Triton, TRL computes logits only where there is a label. Elsewhere it computes all of them: with a vocabulary
of 49,152 tokens and answers of a few tokens that is half of a training step. This is the override of `compute_loss` that
TRL's documentation recommends for a custom loss; the loss itself is the same sum over the same tokens.

On a GPU the host only queues kernels. TRL's loss reads seven numbers back from the device in each step, and the model's mask
an eighth: at each the host waits until the queue is empty, and then the device waits for the host. `score_at_positions`
has the same loss and metrics without them: `collate_positions` finds the labels where the batch is made, `log` reads the
metrics, and the mask is left out where it changes nothing.

Shapes: B rows, T tokens, V vocabulary, K kept positions.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import DistributedType
from trl import SFTTrainer

from peftrun.adapters import traits
from peftrun.compat.peft import get_base_model
from peftrun.compat.transformers import take_rows_as_unpacked
from peftrun.compat.trl import accept_label_positions, read_train_metrics, record_train_metrics
from peftrun.tasks.length_checks import IGNORE_INDEX

MAX_LABEL_SHARE = 0.5  # share of positions above which selecting them saves too little
POSITIONS = "label_positions"
UNSHARDED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


class CompletionLossTrainer(SFTTrainer):
    """Same loss and gradients as SFTTrainer, with less computation where prompts are long and answers short.

    Attributes:
        scores_positions: labels are scored at positions that the collator finds: on a GPU, if every process has the whole model.
        drops_mask: whether a mask of padding on the right changes nothing for tokens before it.
    """

    data_collator: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        on_gpu = self.args.device.type == "cuda" and self.accelerator.distributed_type in UNSHARDED
        self.scores_positions = on_gpu and not self.aux_loss_enabled and not traits.adds_to_loss(self.model)
        self.drops_mask = False
        if self.scores_positions:
            self.score_at_positions()

    def score_at_positions(self) -> None:
        """Scores labels at positions that the collator finds, without waiting for the device."""
        base_model = get_base_model(self.model)
        accept_label_positions(base_model)
        self.data_collator = collate_positions(self.data_collator)
        self.scores_positions, self.drops_mask = True, is_causal(base_model)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The summed negative log-likelihood of the labels, in nats, divided by `num_items_in_batch` tokens."""
        positions = inputs.pop(POSITIONS, None)  # (K,)
        if not self.model.training or not self._is_plain_loss(return_outputs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if positions is not None:
            return self._score_positions(model, inputs, positions, num_items_in_batch)
        keep = self._select_positions(inputs)  # (K,)
        if keep is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, keep + 1]  # (B, K): position t predicts token t + 1
        model_inputs = {key: value for key, value in inputs.items() if key != "labels"}
        logits = model(**model_inputs, use_cache=False, logits_to_keep=keep).logits.float()  # (B, K, V)
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        has_label = labels != IGNORE_INDEX  # (B, K)
        correct = ((logits.detach().argmax(-1) == labels) & has_label).sum()
        accuracy = correct / has_label.sum().clamp(min=1)
        record_train_metrics(self, {"mean_token_accuracy": accuracy}, self._sum_over_processes(count_tokens(inputs)))
        return self._divide_loss(total, has_label.sum(), num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics of the steps since the last log."""
        read_train_metrics(self)
        super().log(logs, start_time)

    def _score_positions(self, model: Any, inputs: dict[str, Any], positions: torch.Tensor, num_items: Any) -> Any:
        """The loss by TRL's own head at these positions, and the metrics that TRL logs with it; nothing is read from the device."""
        tokens = count_tokens(inputs)
        dropped = self.drops_mask and inputs.pop("attention_mask", None) is not None  # packed rows have none
        with take_rows_as_unpacked(dropped):
            outputs = model(**inputs, use_cache=False, fused_lm_head=True, label_positions=positions)
        count = positions.new_full((), positions.numel())  # filled on the device: a copy from the host would wait
        sums = (count, outputs.entropy.detach().sum(), outputs.is_top1.sum(), tokens)
        labels, entropy, correct, tokens = map(self._sum_over_processes, sums)
        metrics = {"entropy": entropy / labels.clamp(min=1), "mean_token_accuracy": correct / labels.clamp(min=1)}
        record_train_metrics(self, metrics, tokens)
        return self._divide_loss(-outputs.log_probs.sum(), count, num_items)

    def _divide_loss(self, total: torch.Tensor, count: torch.Tensor, num_items: Any) -> torch.Tensor:
        """The summed loss over the labels of a step, or where they were not counted over the `count` of this batch."""
        divisor = count if num_items is None else torch.as_tensor(num_items, device=total.device)
        loss = total / divisor.clamp(min=1)
        if self.args.average_tokens_across_devices and num_items is not None:
            # The count is of all processes, and DDP averages over them again.
            loss = loss * self.accelerator.num_processes
        return loss

    def _is_plain_loss(self, return_outputs: bool) -> bool:
        """Whether the loss is the mean over labels and nothing else, so that it may be computed here."""
        return (
            not return_outputs
            and self.label_smoother is None
            and self.args.loss_type == "nll"
            and not self.aux_loss_enabled
            and not traits.adds_to_loss(self.accelerator.unwrap_model(self.model))
        )

    def _select_positions(self, inputs: dict[str, Any]) -> torch.Tensor | None:
        """(K,): positions whose next token has a label in any row; None where TRL's own way is as fast, or needed."""
        if inputs["labels"].device.type == "cuda":
            return None
        base_model = get_base_model(self.accelerator.unwrap_model(self.model))
        if "logits_to_keep" not in inspect.signature(base_model.forward).parameters:
            return None
        has_label = (inputs["labels"][:, 1:] != IGNORE_INDEX).any(0)  # (B, T - 1) → (T - 1,)
        # All processes must take the same branch: each branch gathers other metrics, and would wait forever for the rest.
        saves_time = self.accelerator.gather(has_label.float().mean()[None] < MAX_LABEL_SHARE).all()
        return has_label.nonzero()[:, 0] if saves_time else None

    def _sum_over_processes(self, value: torch.Tensor) -> torch.Tensor:
        gathered: torch.Tensor = self.accelerator.gather_for_metrics(value)
        return gathered.sum()


def count_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """Tokens of a batch, on its device. Padding is not counted; rows that are concatenated without padding have no mask."""
    mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
    return ids.new_full((), ids.numel()) if mask is None else mask.sum()


def is_causal(base_model: Any) -> bool:
    """Whether no token attends to one after it: then padding on the right changes nothing before it, with a mask or without.

    Without a mask attention is the fused causal kernel, which reads no mask; and nothing asks the device whether there is padding.
    """
    flags = [module.is_causal for module in base_model.modules() if hasattr(module, "is_causal")]
    one_way = not getattr(base_model.config.get_text_config(), "use_bidirectional_attention", False)
    return bool(flags) and all(flags) and one_way and type(base_model).__module__.startswith("transformers.")


def collate_positions(collate: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """A collator that adds to each batch, while it is in the host's memory, where its labels are: (K,), positions in (B · T)."""

    def collate_with_positions(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        labels = batch["labels"]  # (B, T)
        row, column = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)  # position t predicts token t + 1
        return {**batch, POSITIONS: row * labels.shape[1] + column}

    return collate_with_positions
