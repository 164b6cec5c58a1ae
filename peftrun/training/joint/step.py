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
from peftrun.adapters.joint.batched_lora import Part, Seating
from peftrun.adapters.joint.rng_streams import Draws, OwnDraws, drops
from peftrun.adapters.joint.stacked_lora import Joint
from peftrun.tasks.length_checks import IGNORED
from peftrun.training import cpu_attention
from peftrun.training.joint import prefix_sharing

FILL = {"labels": IGNORED}  # what pads a key of a batch; input ids: the pad token; else 0
IDS = ("input_ids", "decoder_input_ids")
TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}  # of logits computed in another order, to the largest


@dataclass
class Turn:
    """What a cell brings to a step, and what it is told.

    Attributes:
        inputs: a batch as its collator made it, `labels` among it.
        count: what the summed loss of its labels is divided by; None: how many labels there are.
        loss, right, learned: nats; labels that are the first choice; labels.
    """

    cell: int
    inputs: dict[str, torch.Tensor]
    count: Any
    draws: Draws
    loss: torch.Tensor | None = None
    right: int = 0
    learned: int = 0


@dataclass
class Room:
    """Where cells are trained together: the joint adapters, what kind of task it is, the token that pads, and how the base attends."""

    joint: Joint
    kind: str
    pad: int
    by_products: bool = False

    def __post_init__(self) -> None:
        self.model = self.joint.net.get_base_model()
        self.dropping = drops(self.joint.net)
        head = self.model.get_output_embeddings() if self.kind in ("causal_lm", "seq2seq") else None
        self.head = None if head is None or traits.adapts_output(self.joint.net) else head
        self.sharing = (
            self.kind == "causal_lm"
            and self.head is not None
            and not self.dropping
            and prefix_sharing.can_go_on(self.model)
        )
        self.proved = False

    def learn(self, turns: Sequence[Turn]) -> None:
        """Each turn's loss, and gradients added to its cell's."""
        if not self.model.training:
            self.joint.net.train()
        with cpu_attention.by_products(self.model, self.by_products):
            for some in prefix_sharing.chunks(turns, self.model.device.type):
                self._losses(some, training=True).sum().backward()

    @torch.no_grad()
    def measure(self, turn: Turn) -> None:
        """The turn's loss; nothing is learned, nothing dropped."""
        self.joint.net.eval()
        with cpu_attention.by_products(self.model, self.by_products):
            self._losses([turn], training=False)

    def _losses(self, turns: Sequence[Turn], *, training: bool) -> torch.Tensor:
        """(turns,): each turn's loss; its figures are noted in it."""
        batch = joined([turn.inputs for turn in turns], self.pad)
        labels = batch.pop("labels")
        seating = Seating(tuple(_part(turn, batch, training) for turn in turns))
        where, true = picked(labels, self.kind)
        found = self._logits(batch, labels, where, seating, training).float()
        nats = torch.nn.functional.cross_entropy(found, true, reduction="none")
        sizes = [len(picked(turn.inputs["labels"], self.kind)[1]) for turn in turns]
        right = (found.detach().argmax(-1) == true).split(sizes)
        each = [
            part.sum() / (size if turn.count is None else turn.count)
            for turn, part, size in zip(turns, nats.split(sizes), sizes, strict=True)
        ]
        for turn, loss, hits, size in zip(turns, each, right, sizes, strict=True):
            turn.loss, turn.right, turn.learned = loss.detach(), int(hits.sum()), size
        return torch.stack(each)

    def _logits(self, batch: dict[str, Any], labels: torch.Tensor, where: Any, seating: Seating, training: bool) -> torch.Tensor:  # fmt: skip
        """(picked positions, vocabulary or labels)."""
        if self.head is None:
            with self.joint.seated(seating), self._dropped(seating, training):
                return self.model(**batch).logits[where]
        begin = prefix_sharing.common(batch["input_ids"], labels) if self._shares(seating) else 0
        if not prefix_sharing.worth(begin, len(labels), len(seating.parts), self.model.device.type):
            return self._whole(batch, where, seating, training)
        found = self._from_common(batch, begin, where, seating)
        if not self.proved:
            self._prove(found.detach(), batch, where, seating)
        return found if self.sharing else self._whole(batch, where, seating, training)

    def _whole(self, batch: dict[str, Any], where: Any, seating: Seating, training: bool) -> torch.Tensor:
        with self.joint.seated(seating), self._dropped(seating, training), self._at(where):
            return self.model(**batch, use_cache=False).logits.squeeze(0)

    def _from_common(self, batch: dict[str, Any], begin: int, where: Any, seating: Seating) -> torch.Tensor:
        """The same, with what all rows begin with computed once a cell."""
        rows, ids = [part.rows for part in seating.parts], batch["input_ids"]
        nothing = tuple(one[:0] for one in where)
        once = Seating(tuple(replace(part, rows=1) for part in seating.parts))
        with self.joint.seated(once), self._at(nothing):
            cache = self.model(input_ids=ids[:1, :begin].expand(len(rows), -1), use_cache=True).past_key_values
        positions = torch.arange(begin, ids.shape[1], device=ids.device)[None]
        with self.joint.seated(seating), self._at((where[0], where[1] - begin)):
            return self.model(
                input_ids=ids[:, begin:], attention_mask=batch["attention_mask"], position_ids=positions,
                past_key_values=prefix_sharing.repeated(cache, rows, ids.device), use_cache=True,
            ).logits.squeeze(0)  # fmt: skip

    def _shares(self, seating: Seating) -> bool:
        """Whether rows may go on from a common beginning: not where each row drops units of its own."""
        return self.sharing and not any(self.joint.drops(part.cell) for part in seating.parts)

    @torch.no_grad()
    def _prove(self, found: torch.Tensor, batch: dict[str, Any], where: Any, seating: Seating) -> None:
        """Once a run: rows that go on from a common beginning say what whole rows say, or none go on so."""
        whole = self._whole(batch, where, seating, training=False)
        scale, self.proved = whole.float().abs().max(), True
        if (found.float() - whole.float()).abs().max() > TOLERANCE[whole.dtype] * scale:
            self.sharing = False
            console.say("this model does not go on from a common beginning; each row is computed whole")

    @contextlib.contextmanager
    def _at(self, where: tuple[torch.Tensor, ...]) -> Iterator[None]:
        """Inside, the output layer sees the picked positions alone, as one row."""
        if self.head is None:
            yield
            return
        hook = self.head.register_forward_pre_hook(lambda _, given: (given[0][where][None],))
        try:
            yield
        finally:
            hook.remove()

    def _dropped(self, seating: Seating, training: bool) -> Any:
        return OwnDraws(seating.parts) if training and self.dropping else contextlib.nullcontext()


def picked(labels: torch.Tensor, kind: str) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Where logits are needed, as an index of (rows, tokens) or (rows,), and the true label there, row by row."""
    if labels.dim() == 1:
        return (torch.arange(len(labels), device=labels.device),), labels
    if kind == "causal_lm":  # what is learned at a position is said by the one before
        where = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        return where, labels[:, 1:][where]
    where = (labels != IGNORED).nonzero(as_tuple=True)
    return where, labels[where]


def joined(batches: Sequence[dict[str, torch.Tensor]], pad: int) -> dict[str, torch.Tensor]:
    """One batch of all rows, each key padded on the right to its longest."""
    found = {key: _padded([one[key] for one in batches], _fill(key, pad)) for key in batches[0]}
    if "decoder_input_ids" in found and found["decoder_input_ids"].shape[1] == found["input_ids"].shape[1]:
        for key in ("input_ids", "attention_mask"):  # one more, so that a width says whose it is: see `Part.widths`
            found[key] = torch.nn.functional.pad(found[key], (0, 1), value=_fill(key, pad))
    return found


def _fill(key: str, pad: int) -> int:
    return pad if key in IDS else FILL.get(key, 0)


def _padded(parts: list[torch.Tensor], fill: int) -> torch.Tensor:
    if parts[0].dim() == 1:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])


def _part(turn: Turn, batch: dict[str, torch.Tensor], training: bool) -> Part:
    widths = {batch[key].shape[1]: turn.inputs[key].shape[1] for key in IDS if key in batch}
    return Part(turn.cell, len(turn.inputs["input_ids"]), widths, turn.draws if training else None)
