"""Trainer of one sweep cell in a joint run. Forward and backward are delegated to the joint step; everything else is unchanged.

Data order, schedule, accumulation, early stopping, checkpoints and logs are transformers' own, so that a cell cannot differ in any of
them from the same cell trained alone. AdamW's steps, with clipping, are taken for all cells at once (`joint_adamw`); other optimizers
take their own.

Batches stay on the CPU, and losses on the device: the joint step moves the former, and the latter are read for all cells together
(`step_totals`), so that a GPU is waited for as often with many cells as with one.
"""

import functools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from peftrun.adapters.joint.rng_streams import RngStream
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.compat.torch import hold_parameters
from peftrun.compat.transformers import clear_running_loss, is_log_due, set_label_shift
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.training import sft_trainer
from peftrun.training.joint.joint_adamw import AdamWStep, CellAdamW
from peftrun.training.joint.step import CellBatch
from peftrun.training.joint.step_totals import StepTotals, Totals

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
        # Gradients that are views of the joint buffer exist before the first step.
        self.unbuffered = [parameter for parameter in parameters.values() if parameter.grad is None]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients; those in the joint buffer are zeroed in place, since torch would replace the views by None."""
        for parameter in self.unbuffered:
            parameter.grad = None
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
        totals: losses of all cells.
        row: the cell's parameters in one row of the joint ones.
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
        totals: StepTotals,
        row: torch.Tensor,
        adapter_state: Any,
        fused: bool,
        is_rung: Callable[[int], bool],
        wait_at_rung: Callable[[int, float, str], bool],
        **options: Any,
    ) -> None:
        self.cell, self.kind, self.rng_stream = cell, kind, rng_stream
        self.request_step, self.evaluate_batch, self.adapter_state = request_step, evaluate_batch, adapter_state
        self.fused, self.is_rung, self.wait_at_rung = fused, is_rung, wait_at_rung
        self.totals, self.row = totals, row
        self.num_tokens, self.logged_batches, self.rung_batches = 0, 0, 0
        self.accuracy: float | None = None  # of the batches since the last log, once it is read
        self.grad_norm: torch.Tensor | None = None  # of the last joint optimizer step; None: the cell takes its own
        self.unchecked: deque[tuple[int, torch.Tensor]] = (
            deque()
        )  # (step, input ids) of batches whose loss was not read yet
        self.num_checked = 0
        super().__init__(**options)
        # A sequence classifier's loss is a mean over its texts, that of all others a mean over a step's tokens.
        self.model_accepts_loss_kwargs = kind != "seq_cls"
        # Trainer derives it from the class of its model, which is AdapterParameters here.
        set_label_shift(self, kind == CAUSAL_LM)

    @staticmethod
    def get_optimizer_cls_and_kwargs(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The optimizer's class and arguments, AdamW as one whose steps can be taken with those of other cells."""
        optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(*args, **kwargs)
        return CellAdamW if optimizer_class is torch.optim.AdamW else optimizer_class, arguments

    def get_train_dataloader(self) -> Any:
        """Batches that stay on the CPU."""
        return _keep_on_cpu(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Batches that stay on the CPU."""
        return _keep_on_cpu(super().get_eval_dataloader(*args, **kwargs))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of one optimizer step, and their count of labels, on the CPU."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, torch.device("cpu"))
        return batches, count

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs  # the joint step moves them to the device

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of this batch; its gradients are there when it returns, or AdamW's step is taken."""
        model.train()
        loss: torch.Tensor = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed nats over `num_items_in_batch`; for texts with one label their mean, divided among accumulated batches."""
        if not model.training:
            batch = CellBatch(self.cell, dict(inputs), None, self.rng_stream)
            self.evaluate_batch(batch)
            if batch.loss is not None and not torch.isfinite(batch.loss):
                self.refuse_loss(batch.loss.item(), self.state.global_step + 1, inputs["input_ids"])
            return (batch.loss, {}) if return_outputs else batch.loss
        if num_items_in_batch is not None:
            count = torch.as_tensor(num_items_in_batch).clamp(min=1)
        else:
            num_labels = (inputs["labels"] != IGNORE_INDEX).sum()
            count = num_labels.clamp(min=1) * self.current_gradient_accumulation_steps
        batch = self.request_step(CellBatch(self.cell, dict(inputs), count, self.rng_stream, self._describe_step()))
        self.grad_norm = batch.grad_norm
        self.unchecked.append((self.state.global_step + 1, inputs["input_ids"]))
        self.logged_batches, self.rung_batches = self.logged_batches + 1, self.rung_batches + 1
        self._check_losses(self.totals.peek(self.cell))
        if self.kind == CAUSAL_LM:
            self.num_tokens += int(inputs["attention_mask"].sum())
        return batch.loss

    def refuse_loss(self, loss: float, step: int, ids: torch.Tensor) -> NoReturn:
        """Ends the cell; replaced by `nan_guard`, which knows the rows."""
        raise NotImplementedError

    def _check_losses(self, totals: Totals) -> None:
        """Raises: DataError: a loss among those that the host knows by now is not finite."""
        if totals.finite < totals.batches:
            step, ids = self.unchecked[int(totals.finite) - self.num_checked]
            self.refuse_loss(totals.loss, step, ids)
        while self.num_checked < totals.batches:
            self.unchecked.popleft()
            self.num_checked += 1

    def _describe_step(self) -> AdamWStep | None:
        """AdamW's step after this batch, to be taken with those of other cells."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        if not self.accelerator.sync_gradients or not isinstance(optimizer, CellAdamW):
            return None
        if optimizer.row is None and optimizer.can_bind(self.row):
            optimizer.bind(self.row)
        return None if optimizer.row is None else AdamWStep(self.cell, optimizer, self.args.max_grad_norm)

    def _clip_grad_norm(self, model: Any) -> Any:
        return super()._clip_grad_norm(model) if self.grad_norm is None else self.grad_norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(model, grad_norm) if self.grad_norm is None else self.grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what SFTTrainer logs: tokens seen, and accuracy of the likeliest token."""
        if self.accuracy is not None and self.kind == CAUSAL_LM and "loss" in logs:
            logs |= {"mean_token_accuracy": self.accuracy, "num_tokens": float(self.num_tokens)}
            self.accuracy = None
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Reads the losses where they are needed, and pauses at a rung, after the step's own log, evaluation and checkpoint."""
        step, control = self.state.global_step, self.control
        if control.should_log or control.should_evaluate or control.should_save:
            self._check_losses(self.totals.read(self.cell))
        if is_log_due(self):
            # Trainer would read the loss and the norm of each cell by itself.
            totals = self.totals.read(self.cell)
            clear_running_loss(self)
            tr_loss = torch.tensor(totals.logged_loss)
            grad_norm = grad_norm if self.grad_norm is None else totals.grad_norm
            self.accuracy = totals.logged_accuracy / max(1, self.logged_batches)
            self.totals.reset_logged(self.cell)
            self.logged_batches = 0
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        if self.rung_batches and step < self.state.max_steps and self.is_rung(step):
            self._pause_at_rung(step)

    def _pause_at_rung(self, step: int) -> None:
        totals = self.totals.read(self.cell)
        self._check_losses(totals)
        eval_losses = [row["eval_loss"] for row in self.state.log_history if row["step"] == step and "eval_loss" in row]
        score = eval_losses[-1] if eval_losses else totals.rung_loss / self.rung_batches
        measure = "validation loss" if eval_losses else "mean training loss"
        self.totals.reset_rung(self.cell)
        self.rung_batches = 0
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
        """As the cell alone would save it, so that it can be resumed alone: each tensor for itself, and no choice of kernel."""
        super()._save_optimizer_and_scheduler(output_dir)
        file = Path(output_dir) / OPTIMIZER_NAME
        saved = torch.load(file, weights_only=True)
        saved["state"] = {
            key: {name: _copy_alone(name, value) for name, value in state.items()}
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
    unneeded = {"remove_unused_columns": False, "dataloader_pin_memory": False}  # of the joint batch alone
    collator = data.collator or DataCollatorForLanguageModeling(pad_token_id=data.tokenizer.pad_token_id)
    return CellTrainer(
        fused=fused,
        model=model,
        args=sft_trainer.build_arguments(data, arguments | unneeded),
        train_dataset=Dataset.from_list(data.rows),
        data_collator=collator,
        **cell_options,
        **options,
    )


def _keep_on_cpu(loader: Any) -> Any:
    loader.device = None  # accelerate's: where it moves each batch
    return loader


def _copy_alone(name: str, value: Any) -> Any:
    """A value of the optimizer's state without the storage that it shares with others; the count of steps on the CPU, as torch has it."""
    if not torch.is_tensor(value):
        return value
    return (value.cpu() if name == "step" else value).clone(memory_format=torch.contiguous_format)


def build_trainer_factory(**cell_options: Any) -> Callable[..., Trainer]:
    """`build_cell_trainer` for one cell, called as the training loop calls its factory."""
    return functools.partial(build_cell_trainer, cell_options=cell_options)
