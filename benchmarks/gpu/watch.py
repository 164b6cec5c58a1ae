"""What is seen of a training from a callback: times, losses, memory, tokens. Imports torch and the contestants."""

import time
from typing import Any

import torch

from benchmarks.contestants import Stamps
from benchmarks.gpu.runs import get_peak_gib, get_reserved_gib, synchronize


class TrainingWatch(Stamps):
    """Times of steps, losses, memory, and a digest of the first two batches, to see that all contestants had the same.

    Args: count_pads: count tokens of texts, where rows differ in length; two small kernels a step, and nothing waits for them.
    """

    def __init__(self, count_pads: bool = False) -> None:
        super().__init__()
        self.count_pads, self.hook, self.losses = count_pads, None, list[float]()
        self.tokens, self.computed = list[torch.Tensor](), list[int]()
        self.peak: float | None = None
        self.reserved: float | None = None
        self.dtype = self.attention = self.checkpointing = self.pad = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hooks the embeddings, but for a compiled model, in whose graph a hook would be."""
        net = kwargs["model"]
        self.dtype = str(net.get_input_embeddings().weight.dtype).removeprefix("torch.")
        self.attention = getattr(net.config, "_attn_implementation", None)
        self.checkpointing, self.pad = args.gradient_checkpointing, net.config.pad_token_id
        synchronize()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if args.torch_compile:
            self.begun = time.time()
        else:
            super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keeps the loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the peaks."""
        self.peak, self.reserved = get_peak_gib(), get_reserved_gib()
        if self.hook:
            super().on_train_end(args, state, control, **kwargs)

    def count_tokens(self) -> list[int]:
        """Tokens of texts in each step; empty if they were not counted."""
        return [int(count) for count in self.tokens]

    def count_computed(self) -> list[int]:
        """The same with padding."""
        return self.computed

    def _note(self, module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        ids = arguments[0].detach()  # (B, T)
        if len(self.ended) < 2:
            super()._note(module, arguments)
        if self.count_pads and module.training:
            flat = ids.flatten()
            # The end token is the pad token too: of a run of them the first one ends a text.
            ends = (flat[1:] == self.pad) & (flat[:-1] != self.pad)
            self.tokens.append((flat != self.pad).sum() + ends.sum())
            self.computed.append(flat.numel())
