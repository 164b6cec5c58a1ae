"""One training step of several cells in one pass: their rows in one batch, logits only at labels, one loss per cell.

A cell gets the loss that it would have computed alone: the summed loss of its own rows, divided by its own count of labels.

Shapes: B rows of all cells together, T tokens of the longest row, H hidden size, V vocabulary (or classes), L labels of all
rows together, C cells.

Batches stay on the CPU until they are one: which positions have a label, and what else decides how a step is computed, is known there, so
that a GPU is never waited for.
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
from peftrun.training.joint import joint_adamw, prefix_sharing
from peftrun.training.joint.joint_adamw import AdamWStep
from peftrun.training.joint.step_totals import StepTotals

PAD_VALUES = {"labels": IGNORE_INDEX}  # key of a batch → padding; token ids have the pad token, all others 0
TOKEN_ID_KEYS = ("input_ids", "decoder_input_ids")
# Largest difference of logits computed in another order, relative to the largest logit.
LOGITS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass
class CellBatch:
    """One cell's input batch, and its loss from the joint step.

    Attributes:
        inputs: the batch of the cell's collator on the CPU, tensors of (rows, tokens), with `labels` of (rows, tokens) or (rows,).
        count: divisor of the summed loss of its labels; None: the number of labels.
        rng_stream: the cell's random state, for dropout.
        adamw: the optimizer step to take after the batch, with those of the other cells; None: there is none, or the cell takes it.
        loss: nats, a scalar on the model's device; set by the step, as are the two below.
        grad_norm: of the optimizer step, on the device.
        recent_loss: the loss that the host knows: this one, or on a GPU that of the step before.
        padding: tokens by which its rows were padded to match those of other cells.
    """

    cell: int
    inputs: dict[str, torch.Tensor]
    count: Any
    rng_stream: RngStream
    adamw: AdamWStep | None = None
    loss: torch.Tensor | None = None
    grad_norm: torch.Tensor | None = None
    recent_loss: float = 0.0
    padding: int = 0


@dataclass
class JointStep:
    """The forward and backward pass of the cells of one base model, and their optimizer steps.

    Attributes:
        joint: the cells' adapters on the base model.
        kind: the task type of all cells.
        pad: id of the pad token.
        eager_attention: whether the base model uses eager attention instead of fused attention.
        autocast: the dtype of autocast, which a run alone uses on a GPU; None: it uses none.
        totals: losses and norms of each cell.
    """

    joint: StackedLora
    kind: str
    pad: int
    eager_attention: bool = False
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.model = self.joint.net.get_base_model()
        self.device = self.model.device
        self.totals = StepTotals(len(self.joint.names), self.device)
        self.pass_cost = prefix_sharing.estimate_pass_cost(self.model)
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
        """Sets each batch's loss, adds the gradients to those of its cell, and takes the optimizer steps that are asked for."""
        if not self.model.training:
            self.joint.net.train()
        with cpu_attention.use_eager_attention(self.model, self.eager_attention):
            for group in prefix_sharing.group_by_length(batches, self.pass_cost):
                # Losses are summed: each depends on its own cell's adapter only, so gradients do not mix.
                self._compute_losses(group, training=True).sum().backward()
        self._take_optimizer_steps([batch for batch in batches if batch.adamw])
        self.totals.send()
        for batch in batches:
            batch.recent_loss = self.totals.peek(batch.cell).loss

    def _take_optimizer_steps(self, batches: Sequence[CellBatch]) -> None:
        steps = [batch.adamw for batch in batches if batch.adamw]
        if not steps:
            return
        norms = joint_adamw.take_steps(self.joint.rows, steps)  # (steps,)
        self.joint.clear(*(step.cell for step in steps))
        self.totals.set_grad_norms([step.cell for step in steps], norms)
        for batch, norm in zip(batches, norms.unbind(), strict=True):
            batch.grad_norm = norm

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
            batch.padding = rows * inputs["input_ids"].shape[1] - batch.inputs["input_ids"].numel()
            spans.append(RowSpan(batch.cell, rows, widths, batch.rng_stream if training else None))
        positions, targets = select_labels(labels, self.kind)  # targets: (L,)
        # Labels are ordered by row and rows by cell, so each cell has one span of them.
        row_ends = torch.tensor([span.rows for span in spans]).cumsum(0)  # (C,)
        sizes = torch.bincount(torch.bucketize(positions[0], row_ends, right=True), minlength=len(spans))  # (C,)
        layout = BatchLayout(tuple(spans), tuple(sizes.tolist()) if self.head is not None else ())
        counts = torch.stack([size if batch.count is None else torch.as_tensor(batch.count) for batch, size in zip(batches, sizes, strict=True)])  # fmt: skip
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            logits = self._compute_logits(inputs, labels, positions, layout, training).float()  # (L, V)
        targets = self._send(targets)
        nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")  # (L,)
        slots = self._send(_place_in_rows(sizes))  # (L,)
        losses = _sum_by_cell(nats, slots, sizes) / self._send(counts)  # (C,)
        if training:
            hits = (logits.detach().argmax(-1) == targets).float()  # (L,)
            accuracies = _sum_by_cell(hits, slots, sizes) / self._send(sizes.clamp(min=1))
            self.totals.add(layout.cells, losses.detach(), accuracies)
        for batch, loss in zip(batches, losses.detach().unbind(), strict=True):
            batch.loss = loss
        return losses

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the CPU on the model's device, without waiting for the copy."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _compute_logits(self, inputs: dict[str, Any], labels: torch.Tensor, positions: Any, layout: BatchLayout, training: bool) -> torch.Tensor:  # fmt: skip
        """(L, V): logits at the positions that predict a label."""
        sent = {key: self._send(value) for key, value in inputs.items()}
        positions = tuple(map(self._send, positions))
        if self.head is None:
            with self.joint.bind_batch(layout), self._apply_dropout(layout, training):
                return self.model(**sent).logits[positions]  # (B, T, V) or (B, V) → (L, V)
        # A cell with LoRA dropout draws a mask for every row, the prefix included.
        can_share = self.shares_prefix and not any(self.joint.has_dropout(span.cell) for span in layout.parts)
        length = prefix_sharing.count_common_prefix(inputs["input_ids"], labels) if can_share else 0
        if length * (len(labels) - len(layout.parts)) <= self.pass_cost:  # saved tokens, and what the second pass costs
            return self._compute_whole(sent, positions, layout, training)
        logits = self._compute_from_prefix(sent, length, positions, layout)
        if not self.prefix_verified:  # once per run: logits from whole rows must be the same
            with torch.no_grad():
                whole = self._compute_whole(sent, positions, layout, training=False)
            scale, self.prefix_verified = whole.float().abs().max(), True
            if (logits.detach().float() - whole.float()).abs().max() > LOGITS_TOLERANCE[whole.dtype] * scale:
                self.shares_prefix = False
                console.print_info("this model does not continue from a common prefix; each row is computed whole")
        return logits if self.shares_prefix else self._compute_whole(sent, positions, layout, training)

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


def _place_in_rows(sizes: torch.Tensor) -> torch.Tensor:
    """(L,): where each label is in a (C, most labels of a cell) tensor that is filled row by row. Args: sizes: (C,)."""
    columns = torch.arange(max(1, int(sizes.max())))
    return (columns < sizes[:, None]).flatten().nonzero()[:, 0]


def _sum_by_cell(values: torch.Tensor, slots: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """(L,) → (C,): sums over the labels of each cell, in the same order however many cells there are."""
    rows = values.new_zeros(len(sizes) * max(1, int(sizes.max())))  # `sizes` is on the CPU
    return rows.index_copy(0, slots, values).view(len(sizes), -1).sum(1)


def _get_pad_value(key: str, pad: int) -> int:
    return pad if key in TOKEN_ID_KEYS else PAD_VALUES.get(key, 0)
