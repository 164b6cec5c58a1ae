"""One step of several cells in one pass: their rows side by side, logits only where something is learned, a loss for each.

What a cell is told is what it would have computed alone: its own rows' summed loss over its own count of tokens.
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

PAD_VALUES = {"labels": IGNORE_INDEX}  # what pads a key of a batch; input ids: the pad token; else 0
TOKEN_ID_KEYS = ("input_ids", "decoder_input_ids")
LOGITS_TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}  # of logits computed in another order, to the largest


@dataclass
class CellBatch:
    """What a cell brings to a step, and what it is told.

    Attributes:
        inputs: a batch as its collator made it, `labels` among it.
        count: what the summed loss of its labels is divided by; None: how many labels there are.
        loss, right, learned: nats; labels that are the first choice; labels.
    """

    cell: int
    inputs: dict[str, torch.Tensor]
    count: Any
    draws: RngStream
    loss: torch.Tensor | None = None
    right: int = 0
    learned: int = 0


@dataclass
class JointStep:
    """Where cells are trained together: the joint adapters, what kind of task it is, the token that pads, and how the base attends."""

    joint: StackedLora
    kind: str
    pad: int
    eager_attention: bool = False

    def __post_init__(self) -> None:
        self.model = self.joint.net.get_base_model()
        self.has_dropout = has_dropout(self.joint.net)
        head = self.model.get_output_embeddings() if self.kind in ("causal_lm", "seq2seq") else None
        self.head = None if head is None or traits.adapts_output_layer(self.joint.net) else head
        self.shares_prefix = (
            self.kind == "causal_lm"
            and self.head is not None
            and not self.has_dropout
            and prefix_sharing.supports_prefix_cache(self.model)
        )
        self.prefix_verified = False

    def train_batches(self, turns: Sequence[CellBatch]) -> None:
        """Each turn's loss, and gradients added to its cell's."""
        if not self.model.training:
            self.joint.net.train()
        with cpu_attention.use_eager_attention(self.model, self.eager_attention):
            for some in prefix_sharing.group_by_length(turns, self.model.device.type):
                self._compute_losses(some, training=True).sum().backward()

    @torch.no_grad()
    def evaluate_batch(self, turn: CellBatch) -> None:
        """The turn's loss; nothing is learned, nothing dropped."""
        self.joint.net.eval()
        with cpu_attention.use_eager_attention(self.model, self.eager_attention):
            self._compute_losses([turn], training=False)

    def _compute_losses(self, turns: Sequence[CellBatch], *, training: bool) -> torch.Tensor:
        """(turns,): each turn's loss; its figures are noted in it."""
        batch = join_batches([turn.inputs for turn in turns], self.pad)
        labels = batch.pop("labels")
        seating = BatchLayout(tuple(_build_span(turn, batch, training) for turn in turns))
        where, true = select_labels(labels, self.kind)
        found = self._compute_logits(batch, labels, where, seating, training).float()
        nats = torch.nn.functional.cross_entropy(found, true, reduction="none")
        sizes = [len(select_labels(turn.inputs["labels"], self.kind)[1]) for turn in turns]
        right = (found.detach().argmax(-1) == true).split(sizes)
        each = [
            part.sum() / (size if turn.count is None else turn.count)
            for turn, part, size in zip(turns, nats.split(sizes), sizes, strict=True)
        ]
        for turn, loss, hits, size in zip(turns, each, right, sizes, strict=True):
            turn.loss, turn.right, turn.learned = loss.detach(), int(hits.sum()), size
        return torch.stack(each)

    def _compute_logits(self, batch: dict[str, Any], labels: torch.Tensor, where: Any, seating: BatchLayout, training: bool) -> torch.Tensor:  # fmt: skip
        """(picked positions, vocabulary or labels)."""
        if self.head is None:
            with self.joint.bind_batch(seating), self._apply_dropout(seating, training):
                return self.model(**batch).logits[where]
        begin = prefix_sharing.count_common_prefix(batch["input_ids"], labels) if self._can_share_prefix(seating) else 0
        if not prefix_sharing.is_prefix_worthwhile(begin, len(labels), len(seating.parts), self.model.device.type):
            return self._compute_whole(batch, where, seating, training)
        found = self._compute_from_prefix(batch, begin, where, seating)
        if not self.prefix_verified:
            self._verify_prefix(found.detach(), batch, where, seating)
        return found if self.shares_prefix else self._compute_whole(batch, where, seating, training)

    def _compute_whole(self, batch: dict[str, Any], where: Any, seating: BatchLayout, training: bool) -> torch.Tensor:
        with self.joint.bind_batch(seating), self._apply_dropout(seating, training), self._select_positions(where):
            return self.model(**batch, use_cache=False).logits.squeeze(0)

    def _compute_from_prefix(self, batch: dict[str, Any], begin: int, where: Any, seating: BatchLayout) -> torch.Tensor:
        """The same, with what all rows begin with computed once a cell."""
        rows, ids = [part.rows for part in seating.parts], batch["input_ids"]
        nothing = tuple(one[:0] for one in where)
        once = BatchLayout(tuple(replace(part, rows=1) for part in seating.parts))
        with self.joint.bind_batch(once), self._select_positions(nothing):
            cache = self.model(input_ids=ids[:1, :begin].expand(len(rows), -1), use_cache=True).past_key_values
        positions = torch.arange(begin, ids.shape[1], device=ids.device)[None]
        with self.joint.bind_batch(seating), self._select_positions((where[0], where[1] - begin)):
            return self.model(
                input_ids=ids[:, begin:], attention_mask=batch["attention_mask"], position_ids=positions,
                past_key_values=prefix_sharing.repeat_cache(cache, rows, ids.device), use_cache=True,
            ).logits.squeeze(0)  # fmt: skip

    def _can_share_prefix(self, seating: BatchLayout) -> bool:
        """Whether rows may go on from a common beginning: not where each row drops units of its own."""
        return self.shares_prefix and not any(self.joint.has_dropout(part.cell) for part in seating.parts)

    @torch.no_grad()
    def _verify_prefix(self, found: torch.Tensor, batch: dict[str, Any], where: Any, seating: BatchLayout) -> None:
        """Once a run: rows that go on from a common beginning say what whole rows say, or none go on so."""
        whole = self._compute_whole(batch, where, seating, training=False)
        scale, self.prefix_verified = whole.float().abs().max(), True
        if (found.float() - whole.float()).abs().max() > LOGITS_TOLERANCE[whole.dtype] * scale:
            self.shares_prefix = False
            console.print_info("this model does not go on from a common beginning; each row is computed whole")

    @contextlib.contextmanager
    def _select_positions(self, where: tuple[torch.Tensor, ...]) -> Iterator[None]:
        """Inside, the output layer sees the picked positions alone, as one row."""
        if self.head is None:
            yield
            return
        hook = self.head.register_forward_pre_hook(lambda _, given: (given[0][where][None],))
        try:
            yield
        finally:
            hook.remove()

    def _apply_dropout(self, seating: BatchLayout, training: bool) -> Any:
        return PerAdapterDropout(seating.parts) if training and self.has_dropout else contextlib.nullcontext()


def select_labels(labels: torch.Tensor, kind: str) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Where logits are needed, as an index of (rows, tokens) or (rows,), and the true label there, row by row."""
    if labels.dim() == 1:
        return (torch.arange(len(labels), device=labels.device),), labels
    if kind == "causal_lm":  # what is learned at a position is said by the one before
        where = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
        return where, labels[:, 1:][where]
    where = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    return where, labels[where]


def join_batches(batches: Sequence[dict[str, torch.Tensor]], pad: int) -> dict[str, torch.Tensor]:
    """One batch of all rows, each key padded on the right to its longest."""
    found = {key: _pad_and_concat([one[key] for one in batches], _get_pad_value(key, pad)) for key in batches[0]}
    if "decoder_input_ids" in found and found["decoder_input_ids"].shape[1] == found["input_ids"].shape[1]:
        for key in ("input_ids", "attention_mask"):  # one more, so that a width says whose it is: see `Part.widths`
            found[key] = torch.nn.functional.pad(found[key], (0, 1), value=_get_pad_value(key, pad))
    return found


def _get_pad_value(key: str, pad: int) -> int:
    return pad if key in TOKEN_ID_KEYS else PAD_VALUES.get(key, 0)


def _pad_and_concat(parts: list[torch.Tensor], fill: int) -> torch.Tensor:
    if parts[0].dim() == 1:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])


def _build_span(turn: CellBatch, batch: dict[str, torch.Tensor], training: bool) -> RowSpan:
    widths = {batch[key].shape[1]: turn.inputs[key].shape[1] for key in TOKEN_ID_KEYS if key in batch}
    return RowSpan(turn.cell, len(turn.inputs["input_ids"]), widths, turn.draws if training else None)
