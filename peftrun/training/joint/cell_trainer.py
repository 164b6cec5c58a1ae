"""Trainer of one sweep cell in a joint run. Forward and backward are delegated to the joint step; everything else is unchanged.

Data order, schedule, clipping, accumulation, early stopping, checkpoints and logs are transformers' own, so that a cell
cannot differ in any of them from the same cell trained alone.
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

from peftrun.adapters.joint.rng_streams import RngStream
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.compat.torch import hold_parameters
from peftrun.compat.transformers import set_label_shift
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.training import sft_trainer
from peftrun.training.joint.step import CellBatch

CAUSAL_LM = "causal_lm"


class AdapterParameters(torch.nn.Module):
    """The trainable parameters of one adapter out of many, as a module for Trainer.

    Args:
        parameters: name, as it is where the adapter is alone in its model → parameter.
        config: of the base model, which Trainer reads.
        clear: sets the cell's gradients in the joint buffer to zero.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], config: Any, clear: Callable[[], None]) -> None:
        super().__init__()
        hold_parameters(self, parameters)
        self.config, self.clear = config, clear
        # Gradients of LoRA matrices are views of the joint buffer, and exist before the first step.
        self.buffered = [parameter for parameter in parameters.values() if parameter.grad is not None]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients; those in the joint buffer are zeroed in place, since torch would replace the views by None."""
        views = [(parameter, parameter.grad) for parameter in self.buffered]
        super().zero_grad(set_to_none)
        for parameter, view in views:
            parameter.grad = view
        self.clear()

    def forward(self, labels: Any = None, **inputs: Any) -> Any:
        """Never called: forward passes are delegated. Trainer reads the names of its parameters to see what a batch holds."""
        raise NotImplementedError


class CellTrainer(Trainer):
    """Trainer whose steps are computed together with those of other cells.

    Args:
        cell: number of the cell's adapter among the joint ones.
        kind: the task type.
        request_step: hands a CellBatch over and returns it with its loss, its gradients added to the cell's.
        evaluate_batch: computes the loss of a CellBatch without gradients.
        rng_stream: the cell's random state.
        adapter_state: the adapter's state in checkpoints: (read tensors, set tensors, PEFT config).
        fused: the optimizer's steps use one fused kernel, unlike those of the cell trained alone.
        is_rung: whether cells are compared after a step.
        wait_at_rung: waits for the other cells' losses at a rung; False: stop training.
    """

    def __init__(
        self,
        *,
        cell: int,
        kind: str,
        request_step: Any,
        evaluate_batch: Any,
        rng_stream: RngStream,
        adapter_state: Any,
        fused: bool,
        is_rung: Callable[[int], bool],
        wait_at_rung: Callable[[int, float, str], bool],
        **options: Any,
    ) -> None:
        self.cell, self.kind, self.rng_stream = cell, kind, rng_stream
        self.request_step, self.evaluate_batch, self.adapter_state = request_step, evaluate_batch, adapter_state
        self.fused, self.is_rung, self.wait_at_rung = fused, is_rung, wait_at_rung
        self.num_tokens, self.accuracies, self.losses = 0, list[float](), list[float]()
        super().__init__(**options)
        # A sequence classifier's loss is a mean over its texts, that of all others a mean over a step's tokens.
        self.model_accepts_loss_kwargs = kind != "seq_cls"
        # Trainer derives it from the class of its model, which is AdapterParameters here.
        set_label_shift(self, kind == CAUSAL_LM)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of this batch; its gradients are there when it returns."""
        model.train()
        loss: torch.Tensor = self.compute_loss(
            model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch
        )
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed nats over `num_items_in_batch`; for texts with one label their mean, divided among accumulated batches."""
        if not model.training:
            batch = CellBatch(self.cell, dict(inputs), None, self.rng_stream)
            self.evaluate_batch(batch)
            return (batch.loss, {}) if return_outputs else batch.loss
        if num_items_in_batch is not None:
            count = torch.as_tensor(num_items_in_batch).clamp(min=1)
        else:
            num_labels = (inputs["labels"] != IGNORE_INDEX).sum()
            count = num_labels.clamp(min=1) * self.current_gradient_accumulation_steps
        batch = self.request_step(CellBatch(self.cell, dict(inputs), count, self.rng_stream))
        self.losses.append(float(batch.loss))
        if self.kind == CAUSAL_LM:
            self.accuracies.append(batch.right / max(1, batch.learned))
            self.num_tokens += int(inputs["attention_mask"].sum())
        return batch.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what SFTTrainer logs: tokens seen, and accuracy of the likeliest token."""
        if self.accuracies and "loss" in logs:
            accuracy = sum(self.accuracies) / len(self.accuracies)
            logs |= {"mean_token_accuracy": accuracy, "num_tokens": float(self.num_tokens)}
            self.accuracies.clear()
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Pauses at a rung, after the step's own log, evaluation and checkpoint."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        step = self.state.global_step
        if not self.losses or step >= self.state.max_steps or not self.is_rung(step):
            return
        eval_losses = [row["eval_loss"] for row in self.state.log_history if row["step"] == step and "eval_loss" in row]
        score = eval_losses[-1] if eval_losses else sum(self.losses) / len(self.losses)
        measure = "validation loss" if eval_losses else "mean training loss"
        self.losses.clear()
        if not self.wait_at_rung(step, score, measure):
            self._save_checkpoint(self.model, None)
            self.callback_handler.on_save(self.args, self.state, self.control).should_training_stop = True

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        read_tensors, _, peft_config = self.adapter_state
        save_file(read_tensors(), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        peft_config.save_pretrained(str(folder))
        torch.save(self.args, folder / "training_args.bin")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the cell alone would save it: contiguous tensors, and no choice of kernel, so that it can be resumed alone."""
        super()._save_optimizer_and_scheduler(output_dir)
        file = Path(output_dir) / OPTIMIZER_NAME
        saved = torch.load(file, weights_only=True)
        saved["state"] = {
            key: {name: value.contiguous() if torch.is_tensor(value) else value for name, value in state.items()}
            for key, state in saved["state"].items()
        }
        saved["param_groups"] = [group | ({"fused": None} if self.fused else {}) for group in saved["param_groups"]]
        torch.save(saved, file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Gives the loaded state the strides of its parameters: the fused kernel walks both in the order of memory."""
        super()._load_optimizer_and_scheduler(checkpoint)
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)
        for group in self.optimizer.param_groups if self.fused else []:
            group["fused"] = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        _, set_tensors, _ = self.adapter_state
        set_tensors(load_file(Path(resume_from_checkpoint) / ADAPTER_WEIGHTS))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


def build_cell_trainer(
    model: Any, data: Any, arguments: dict[str, Any], *, cell_options: dict[str, Any], **options: Any
) -> Trainer:
    """The Trainer of a cell. Args: arguments: training arguments by name. cell_options: CellTrainer's arguments beyond Trainer's."""
    fused = arguments["optim"] == "adamw_torch"
    if fused:  # many small tensors: launching a kernel for each costs more than the step itself
        arguments = arguments | {"optim": "adamw_torch_fused"}
    collator = data.collator or DataCollatorForLanguageModeling(pad_token_id=data.tokenizer.pad_token_id)
    return CellTrainer(
        fused=fused,
        model=model,
        args=sft_trainer.build_arguments(data, arguments | {"remove_unused_columns": False}),
        train_dataset=Dataset.from_list(data.rows),
        data_collator=collator,
        **cell_options,
        **options,
    )


def build_trainer_factory(**cell_options: Any) -> Callable[..., Trainer]:
    """`build_cell_trainer` for one cell, called as the training loop calls its factory."""
    return functools.partial(build_cell_trainer, cell_options=cell_options)
