"""A cell's own Trainer in a joint run: everything it does alone, but forward and backward, which it asks the others' company for.

Order of the data, schedule, clipping, accumulation, early stopping, checkpoints and logs are transformers' own, so that a cell
cannot differ from its lone run in any of them.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.training import sft_trainer
from peftrun.training.joint.step import CellBatch

CAUSAL_LM = "causal_lm"


class AdapterParameters(torch.nn.Module):
    """Of a model with many adapters the trainable parameters of one, under the names that they have where it is alone."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], config: Any, clear: Callable[[], None]) -> None:
        super().__init__()
        self._parameters.update(parameters)  # register_parameter refuses names with dots
        self.config, self.clear = config, clear
        self.kept = [one for one in parameters.values() if one.grad is not None]  # gradients that lie in a buffer

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients that lie in the joint buffer stay there."""
        held = [(one, one.grad) for one in self.kept]
        super().zero_grad(set_to_none)
        for one, grad in held:
            one.grad = grad
        self.clear()

    def forward(self, labels: Any = None, **inputs: Any) -> Any:
        """Never called: what a batch gives is asked of the room. The names tell Trainer what a batch holds."""
        raise NotImplementedError


class CellTrainer(Trainer):
    """Trainer whose steps are taken together with others'.

    Args: ask: hands a turn over and comes back once it is computed. measure: computes one without learning.
        keep: what a checkpoint holds of the adapter: (tensors(), fill(tensors), the adapter's PEFT config).
        fused: its optimiser's steps are taken in one kernel, other than where the cell is alone.
        rung: of a step, whether cells are compared there. pause: waits for the others' losses; whether to go on.
    """

    def __init__(self, *, cell: int, kind: str, ask: Any, measure: Any, draws: Any, keep: Any,
                 fused: bool, rung: Callable[[int], bool], pause: Callable[[int, float, str], bool], **common: Any) -> None:  # fmt: skip
        self.cell, self.kind, self.ask, self.measure, self.draws, self.keep = cell, kind, ask, measure, draws, keep
        self.fused, self.rung, self.pause = fused, rung, pause
        self.seen, self.hits, self.losses = 0, list[float](), list[float]()
        super().__init__(**common)
        self.model_accepts_loss_kwargs = (
            kind != "seq_cls"
        )  # whose loss is a mean over texts, the others' over a step's tokens
        self._loss_shifts_labels = (
            kind == CAUSAL_LM
        )  # Trainer asks the class of its model, which is not the base's here

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of this batch; gradients are there when it comes back."""
        model.train()
        loss: torch.Tensor = self.compute_loss(
            model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch
        )
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed nats over `num_items_in_batch`; of texts with one label their mean, shared out over accumulated batches."""
        if not model.training:
            turn = CellBatch(self.cell, dict(inputs), None, self.draws)
            self.measure(turn)
            return (turn.loss, {}) if return_outputs else turn.loss
        turn = self.ask(CellBatch(self.cell, dict(inputs), self._count_items(inputs, num_items_in_batch), self.draws))
        self.losses.append(float(turn.loss))
        if self.kind == CAUSAL_LM:
            self.hits.append(turn.right / max(1, turn.learned))
            self.seen += int(inputs["attention_mask"].sum())
        return turn.loss

    def _count_items(self, inputs: Any, items: Any) -> Any:
        if items is not None:
            return torch.as_tensor(items).clamp(min=1)
        labels = inputs["labels"]
        return ((labels != IGNORE_INDEX).sum()).clamp(min=1) * self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As SFTTrainer logs: tokens seen, and the share of labels that were the first choice."""
        if self.hits and "loss" in logs:
            logs |= {"mean_token_accuracy": sum(self.hits) / len(self.hits), "num_tokens": float(self.seen)}
            self.hits.clear()
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        step = self.state.global_step
        if not self.losses or step >= self.state.max_steps or not self.rung(step):
            return
        measured = [row["eval_loss"] for row in self.state.log_history if row["step"] == step and "eval_loss" in row]
        score = measured[-1] if measured else sum(self.losses) / len(self.losses)
        measure = "validation loss" if measured else "mean training loss"
        self.losses.clear()
        if not self.pause(step, score, measure):
            self._save_checkpoint(self.model, None)
            self.callback_handler.on_save(self.args, self.state, self.control).should_training_stop = True

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors, _, config = self.keep
        save_file(tensors(), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(folder))
        torch.save(self.args, folder / "training_args.bin")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the cell alone would: whole tensors, and steps by whichever kernel is chosen where it goes on."""
        super()._save_optimizer_and_scheduler(output_dir)
        file = Path(output_dir) / OPTIMIZER_NAME
        saved = torch.load(file, weights_only=True)
        saved["state"] = {
            key: {name: one.contiguous() if torch.is_tensor(one) else one for name, one in state.items()}
            for key, state in saved["state"].items()
        }
        saved["param_groups"] = [group | ({"fused": None} if self.fused else {}) for group in saved["param_groups"]]
        torch.save(saved, file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """What was saved, laid out as the joint parameters are: one kernel walks through both in the order of memory."""
        super()._load_optimizer_and_scheduler(checkpoint)
        for one, state in self.optimizer.state.items():
            state |= {name: _match_layout(value, one) for name, value in state.items()}
        for group in self.optimizer.param_groups if self.fused else []:
            group["fused"] = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.keep[1](load_file(Path(resume_from_checkpoint) / ADAPTER_WEIGHTS))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


def _match_layout(value: Any, like: torch.Tensor) -> Any:
    same = torch.is_tensor(value) and value.shape == like.shape
    return torch.empty_like(like).copy_(value) if same else value


def build_cell_trainer(
    model: Any, lesson: Any, given: dict[str, Any], *, seat: dict[str, Any], **common: Any
) -> Trainer:
    """The seat of a cell. `given`: training arguments by name; `seat`: what `Seat` takes beside Trainer's own."""
    fused = given["optim"] == "adamw_torch"
    if fused:  # the same steps in one kernel: many small tensors cost more to call than to move
        given = given | {"optim": "adamw_torch_fused"}
    collator = lesson.collator or DataCollatorForLanguageModeling(pad_token_id=lesson.tokenizer.pad_token_id)
    return CellTrainer(
        fused=fused,
        model=model,
        args=sft_trainer.build_arguments(lesson, given | {"remove_unused_columns": False}),
        train_dataset=Dataset.from_list(lesson.rows),
        data_collator=collator,
        **seat,
        **common,
    )


def build_trainer_factory(**seat: Any) -> Callable[..., Trainer]:
    """`make` for one cell, as the loop calls it."""
    return functools.partial(build_cell_trainer, seat=seat)
