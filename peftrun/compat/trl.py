"""trl 1.16: where SFTTrainer keeps what it logs, and the head with which it scores labels without computing all logits."""

import functools
import inspect
import types
from typing import Any

import torch
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, FusedCausalLMOutput

OUTPUTS = ("log_probs", "entropy", "is_top1")  # what SFTTrainer has its head compute for a label


def record_train_metrics(trainer: Any, metrics: dict[str, torch.Tensor], tokens: torch.Tensor) -> None:
    """Adds a batch to SFTTrainer's log: numbers such as its token accuracy, and its tokens to those seen.

    TRL does it inside of its own loss alone, and waits for the device there. Here all stay on the device until `read_train_metrics`.
    """
    trainer._total_train_tokens += tokens
    log = trainer._metrics["train"]
    for name, value in metrics.items():
        log[name].append(value)
    log["num_tokens"] = [trainer._total_train_tokens]


def read_train_metrics(trainer: Any) -> None:
    """Makes numbers of what was recorded on the device: it is waited for once a log, not several times a step."""
    log = trainer._metrics["train"]
    for name, values in log.items():
        tensors = [value for value in values if torch.is_tensor(value)]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        log[name] = [next(numbers) if torch.is_tensor(value) else value for value in values]
    if torch.is_tensor(trainer._total_train_tokens):
        trainer._total_train_tokens = int(trainer._total_train_tokens)


def accept_label_positions(model: Any) -> None:
    """Gives the head that SFTTrainer has added to `model` the argument `label_positions`, (K,): the positions in (B · T) to score.

    TRL finds them by the labels on the device, and the host waits until it has: the queue of kernels runs empty in the middle
    of each step. With the argument every output is (K,), in the order of the positions.
    """
    trl_forward = model.forward
    traits = inspect.getclosurevars(trl_forward).nonlocals  # what TRL read from the config: how logits are scaled

    # The signature of the model's own forward pass, as TRL keeps it: `generate` compares its arguments with it.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, label_positions: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if label_positions is None:
            return trl_forward(*args, **kwargs)
        del kwargs["fused_lm_head"]
        labels = kwargs.pop("labels").flatten()  # (B, T) → (B · T,)
        hidden = self.base_model(*args, **kwargs).last_hidden_state.flatten(0, 1)  # (B, T, H) → (B · T, H)
        head = self.get_output_embeddings()
        hidden = hidden.index_select(0, label_positions.to(hidden.device)).to(head.weight.device)  # (K, H)
        targets = labels.index_select(0, label_positions + 1).to(head.weight.device)  # (K,): t predicts t + 1
        log_probs, entropy, _, _, is_top1 = ChunkedLogProbFunction.apply(
            hidden, head.weight, head.bias, targets, traits["temperature"], _CHUNKED_LOGPROB_CHUNK_SIZE,
            traits["final_logit_softcapping"], traits["logit_scale"], OUTPUTS,
        )  # fmt: skip
        return FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1)

    model.forward = types.MethodType(forward, model)
