"""One training step of several cells in one pass: their rows in one batch, logits only at labels, one loss per cell.

A cell gets the loss that it would have computed alone: the summed loss of its own rows, divided by its own count of labels.

Shapes: B rows of all cells together, T tokens of the longest row, H hidden size, V vocabulary (or classes), L labels of all
rows together, C cells.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from peftrun import console
from peftrun.adapters import traits
from peftrun.adapters.joint.batched_lora import BatchLayout, RowSpan
from peftrun.adapters.joint.rng_streams import PerAdapterDropout, RngStream, has_dropout
from peftrun.adapters.joint.stacked_lora import StackedLora
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.training import cpu_attention
from peftrun.training.joint import prefix_sharing

PAD_VALUES = {"labels": IGNORE_INDEX}  # key of a batch → padding; token ids have the pad token, all others 0
TOKEN_ID_KEYS = ("input_ids", "decoder_input_ids")
# Largest difference of logits computed in another order, relative to the largest logit.
LOGITS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass
class CellBatch:
    """One cell's input batch, and its loss from the joint step.

    Attributes:
        inputs: the batch of the cell's collator, tensors of (rows, tokens), with `labels` of (rows, tokens) or (rows,).
        count: divisor of the summed loss of its labels; None: the number of labels.
        rng_stream: the cell's random state, for dropout.
        loss: nats, a scalar; set by the step, as are the two below.
        right, learned: labels that are the likeliest token, and all labels.
    """

    cell: int
    inputs: dict[str, torch.Tensor]
    count: Any
    rng_stream: RngStream
    loss: torch.Tensor | None = None
    right: int = 0
    learned: int = 0


@dataclass
class JointStep:
    """The forward and backward pass of the cells of one base model.

    Attributes:
        joint: the cells' adapters on the base model.
        kind: the task type of all cells.
        pad: id of the pad token.
        eager_attention: whether the base model uses eager attention instead of fused attention.
    """

    joint: StackedLora
    kind: str
    pad: int
    eager_attention: bool = False

    def __post_init__(self) -> None:
        self.model = self.joint.net.get_base_model()
        self.has_dropout = has_dropout(self.joint.net)
        output_layer = self.model.get_output_embeddings() if self.kind in ("causal_lm", "seq2seq") else None
        # None: all positions go through the output layer, since an adapter on it needs whole rows.
        self.head = None if output_layer is None or traits.adapts_output_layer(self.joint.net) else output_layer
        # The base model's own dropout would draw one mask for the prefix where it draws one for each row.
        self.shares_prefix = (
            self.kind == "causal_lm"
            and self.head is not None
            and not self.has_dropout
            and prefix_sharing.supports_prefix_cache(self.model)
        )
        self.prefix_verified = False

    def train_batches(self, batches: Sequence[CellBatch]) -> None:
        """Sets each batch's loss, and adds the gradients to those of its cell."""
        if not self.model.training:
            self.joint.net.train()
        with cpu_attention.use_eager_attention(self.model, self.eager_attention):
            for group in prefix_sharing.group_by_length(batches, self.model.device.type):
                # Losses are summed: each depends on its own cell's adapter only, so gradients do not mix.
                self._compute_losses(group, training=True).sum().backward()

    @torch.no_grad()
    def evaluate_batch(self, batch: CellBatch) -> None:
        """Sets the batch's loss, without gradients or dropout."""
        self.joint.net.eval()
        with cpu_attention.use_eager_attention(self.model, self.eager_attention):
            self._compute_losses([batch], training=False)

    def _compute_losses(self, batches: Sequence[CellBatch], *, training: bool) -> torch.Tensor:
        """(C,): the loss of each batch, which is also stored in it."""
        inputs = join_batches([batch.inputs for batch in batches], self.pad)
        labels = inputs.pop("labels")  # (B, T) or (B,)
        spans = []
        for batch in batches:
            # Padded width → the cell's own, so that dropout draws as many numbers as it would for the cell alone.
            widths = {inputs[key].shape[1]: batch.inputs[key].shape[1] for key in TOKEN_ID_KEYS if key in inputs}
            rows = len(batch.inputs["input_ids"])
            spans.append(RowSpan(batch.cell, rows, widths, batch.rng_stream if training else None))
        # Labels are ordered by row and rows by cell, so each cell has one span of them.
        sizes = [len(select_labels(batch.inputs["labels"], self.kind)[1]) for batch in batches]
        layout = BatchLayout(tuple(spans), tuple(sizes) if self.head is not None else ())
        positions, targets = select_labels(labels, self.kind)  # targets: (L,)
        logits = self._compute_logits(inputs, labels, positions, layout, training).float()  # (L, V)
        nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")  # (L,)
        correct = (logits.detach().argmax(-1) == targets).split(sizes)
        losses = [
            cell_nats.sum() / (size if batch.count is None else batch.count)
            for batch, cell_nats, size in zip(batches, nats.split(sizes), sizes, strict=True)
        ]
        for batch, loss, hits, size in zip(batches, losses, correct, sizes, strict=True):
            batch.loss, batch.right, batch.learned = loss.detach(), int(hits.sum()), size
        return torch.stack(losses)

    def _compute_logits(self, inputs: dict[str, Any], labels: torch.Tensor, positions: Any, layout: BatchLayout, training: bool) -> torch.Tensor:  # fmt: skip
        """(L, V): logits at the positions that predict a label."""
        if self.head is None:
            with self.joint.bind_batch(layout), self._apply_dropout(layout, training):
                return self.model(**inputs).logits[positions]  # (B, T, V) or (B, V) → (L, V)
        # A cell with LoRA dropout draws a mask for every row, the prefix included.
        can_share = self.shares_prefix and not any(self.joint.has_dropout(span.cell) for span in layout.parts)
        length = prefix_sharing.count_common_prefix(inputs["input_ids"], labels) if can_share else 0
        if not prefix_sharing.is_prefix_worthwhile(length, len(labels), len(layout.parts), self.model.device.type):
            return self._compute_whole(inputs, positions, layout, training)
        logits = self._compute_from_prefix(inputs, length, positions, layout)
        if not self.prefix_verified:  # once per run: logits from whole rows must be the same
            with torch.no_grad():
                whole = self._compute_whole(inputs, positions, layout, training=False)
            scale, self.prefix_verified = whole.float().abs().max(), True
            if (logits.detach().float() - whole.float()).abs().max() > LOGITS_TOLERANCE[whole.dtype] * scale:
                self.shares_prefix = False
                console.print_info("this model does not continue from a common prefix; each row is computed whole")
        return logits if self.shares_prefix else self._compute_whole(inputs, positions, layout, training)

    def _compute_whole(self, inputs: dict[str, Any], positions: Any, layout: BatchLayout, training: bool) -> torch.Tensor:  # fmt: skip
        """(L, V), from whole rows."""
        with self.joint.bind_batch(layout), self._apply_dropout(layout, training), self._select_positions(positions):
            return self.model(**inputs, use_cache=False).logits.squeeze(0)  # (1, L, V) → (L, V)

    def _compute_from_prefix(self, inputs: dict[str, Any], length: int, positions: Any, layout: BatchLayout) -> torch.Tensor:  # fmt: skip
        """(L, V), with the first `length` tokens, which all rows have in common, computed once per cell."""
        ids = inputs["input_ids"]  # (B, T)
        cell_rows = [span.rows for span in layout.parts]
        no_positions = tuple(index[:0] for index in positions)
        one_row_each = BatchLayout(tuple(replace(span, rows=1) for span in layout.parts), (0,) * len(layout.parts))
        with self.joint.bind_batch(one_row_each), self._select_positions(no_positions):
            prefix = ids[:1, :length].expand(len(cell_rows), -1)  # (C, length): the same tokens through each adapter
            cache = self.model(input_ids=prefix, use_cache=True).past_key_values  # (C, heads, length, D) a layer
        cache = prefix_sharing.repeat_cache(cache, cell_rows, ids.device)  # (B, heads, length, D) a layer
        position_ids = torch.arange(length, ids.shape[1], device=ids.device)[None]  # (1, T - length)
        rows, tokens = positions
        with self.joint.bind_batch(layout), self._select_positions((rows, tokens - length)):
            # The mask is of whole rows, (B, T): it covers the cached tokens too.
            return self.model(
                input_ids=ids[:, length:], attention_mask=inputs["attention_mask"], position_ids=position_ids,
                past_key_values=cache, use_cache=True,
            ).logits.squeeze(0)  # fmt: skip

    @contextlib.contextmanager
    def _select_positions(self, positions: tuple[torch.Tensor, ...]) -> Iterator[None]:
        """Inside, the output layer gets only the hidden states at `positions`, as one row: (B, T, H) → (1, L, H)."""
        if self.head is None:
            yield
            return
        hook = self.head.register_forward_pre_hook(lambda _, args: (args[0][positions][None],))
        try:
            yield
        finally:
            hook.remove()

    def _apply_dropout(self, layout: BatchLayout, training: bool) -> Any:
        """Draws the base model's dropout from each cell's random state, so that a cell drops what it would drop alone."""
        return PerAdapterDropout(layout.parts) if training and self.has_dropout else contextlib.nullcontext()


def select_labels(labels: torch.Tensor, kind: str) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Where logits are needed, as indices (rows, tokens) or (rows,) of L elements each, and the labels (L,), row by row."""
    if labels.dim() == 1:  # (B,): one label per row
        return (torch.arange(len(labels), device=labels.device),), labels
    if kind == "causal_lm":  # (B, T): the logits at t - 1 predict the label at t
        labels = labels[:, 1:]
    positions = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    return positions, labels[positions]


def join_batches(batches: Sequence[dict[str, torch.Tensor]], pad: int) -> dict[str, torch.Tensor]:
    """One batch of all rows: each key concatenated, (rows, tokens) of each cell → (B, T), padded on the right."""
    joined = {}
    for key in batches[0]:
        tensors, fill = [batch[key] for batch in batches], _get_pad_value(key, pad)
        if tensors[0].dim() > 1:
            width = max(tensor.shape[1] for tensor in tensors)
            tensors = [torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=fill) for tensor in tensors]
        joined[key] = torch.cat(tensors)
    if "decoder_input_ids" in joined and joined["decoder_input_ids"].shape[1] == joined["input_ids"].shape[1]:
        # Dropout knows encoder from decoder by the width of a tensor (`RowSpan.widths`), so the two must differ.
        for key in ("input_ids", "attention_mask"):
            joined[key] = torch.nn.functional.pad(joined[key], (0, 1), value=_get_pad_value(key, pad))
    return joined


def _get_pad_value(key: str, pad: int) -> int:
    return pad if key in TOKEN_ID_KEYS else PAD_VALUES.get(key, 0)
