"""From a model and rows to a trained model: what every loop shares, whoever's loop it is."""

import contextlib
import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from peftrun.artifacts.run_layout import CHECKPOINTS, METRICS
from peftrun.config import usage
from peftrun.config.schema.run import TrainerSpec
from peftrun.errors import ConfigError
from peftrun.models.device import Device
from peftrun.planning import throughput
from peftrun.training import checkpoints, distributed, eval_loss, nan_guard, unsaved_state
from peftrun.training.callbacks import MetricsCallback

ROUTER_KEYS = ("output_router_logits", "router_aux_loss_coef")
REFERENCE_ADAPTER = "ref"  # TRL's copy of an adapter as it was at the start


@dataclass(frozen=True)
class FitResult:
    """How training went. `train_loss` is the mean over all steps."""

    steps: int
    train_loss: float
    seconds: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TrainingData:
    """What is learned.

    Attributes:
        rows: of the kind that the loop takes.
        names: where each of them comes from.
        inputs: digests of what it is made from; noted in each checkpoint.
        validation: more of them, on which the loss is measured while training.
        collator: makes batches for transformers' own Trainer; None: TRL's loops make their own.
        objective: of preferences and rewards; None: supervised.
    """

    rows: list[dict[str, Any]]
    names: list[str]
    tokenizer: Any
    seed: int
    max_length: int
    collator: Any = None
    objective: Any = None
    validation: list[dict[str, Any]] | None = None
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodHooks:
    """What an adapter's method asks of the loop.

    Attributes:
        optimizer: makes its own optimiser of (class, arguments) that the loop would use; None returned: that one will do.
        each_step: called with the number of each step once the weights have moved.
        begin: called before the first step, when the libraries have made of the model what they train.
    """

    optimizer: Callable[[type, dict[str, Any]], Any] | None = None
    each_step: Callable[[int], None] | None = None
    begin: Callable[[], None] | None = None


NO_HOOKS = MethodHooks()
TrainerFactory = Callable[..., Trainer]


def count_steps(trainer: TrainerSpec, rows: int) -> int:
    """Optimiser steps of a run over so many rows."""
    return throughput.count_optimizer_steps(trainer, rows) or 0


def _resolve_warmup(trainer: TrainerSpec, rows: int) -> float:
    """Steps of warm-up, or a share of all steps; a run so short that the share rounds up to all of it would learn at no rate at all."""
    share, total = trainer.warmup_steps, count_steps(trainer, rows)
    return float(total - 1) if share < 1 and math.ceil(share * total) >= total else share


def fit(model: Any, lesson: TrainingData, trainer: TrainerSpec, device: Device, out_dir: Path, *,
        checkpoint: Path | None, method: MethodHooks = NO_HOOKS, maker: TrainerFactory | None = None) -> FitResult:  # fmt: skip
    """Trains what requires a gradient in `model`, in place; logs and checkpoints go below `out_dir`.

    Args: maker: makes the Trainer in place of the lesson's own loop: of a cell that is trained among others, which shows
        no progress of its own.

    Raises: ConfigError: TRL or transformers refuse the arguments. DataError: the loss is no longer a finite number.
    """
    _check_device(trainer, device)
    report = MetricsCallback(out_dir / METRICS, lesson.inputs, method.each_step, method.begin, shown=maker is None)
    given = _build_arguments(trainer, device, lesson.seed, out_dir) | {
        "warmup_steps": _resolve_warmup(trainer, len(lesson.rows))
    }
    routing = {key: getattr(model.config, key) for key in ROUTER_KEYS if hasattr(model.config, key)}
    learned = [(one, one.data) for one in model.parameters() if one.requires_grad]
    plain = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = _build_optimizer(model, TrainingArguments(**{key: given[key] for key in given.keys() & plain}), method)
    apart = {"eval_dataset": Dataset.from_list(lesson.validation)} if lesson.validation else {}
    common = {"callbacks": _build_callbacks(report, trainer), "optimizers": (own, None), **apart}
    trained_by = _build_trainer(maker, model, lesson, given, common)
    if REFERENCE_ADAPTER in getattr(model, "peft_config", {}):
        model.delete_adapter(
            REFERENCE_ADAPTER
        )  # a copy of the fresh adapter; without it the reference is the base, the adapter off
    for one, value in learned:
        one.data = value  # TRL has rounded an adapter on a quantised base to bfloat16, and what is saved would answer otherwise
    distributed.shard_on_cpu(trained_by)
    nan_guard.raise_on_nan_loss(trained_by, lesson.rows, lesson.names, lesson.tokenizer)
    checkpoints.stop_where_ended(trained_by)
    unsaved_state.keep_adapter_state(trained_by)
    trained_by.create_model_card = lambda *_, **__: None  # TRL's, in each checkpoint's folder
    eval_loss.average_over_rows(trained_by)
    for unwanted in (PrinterCallback, ProgressCallback):
        trained_by.remove_callback(unwanted)
    try:
        found = trained_by.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        report.close()
        _restore_router_config(model, routing)
    model.eval()
    seconds, history = found.metrics["train_runtime"], trained_by.state.log_history
    return FitResult(
        found.global_step, _compute_mean_loss(history, found.training_loss), seconds, _count_tokens(history)
    )


def _build_trainer(
    maker: TrainerFactory | None, model: Any, lesson: TrainingData, given: dict[str, Any], common: dict[str, Any]
) -> Trainer:
    # TRL takes a second to import, which a training that is refused need not wait for.
    loops = "sft_trainer" if lesson.objective is None else "preference_trainer"
    make = maker or import_module(f"peftrun.training.{loops}").loop
    try:
        with _suppress_output():
            made: Trainer = make(model, lesson, given, **common)
    except ValueError as error:  # the libraries own the rules between their own arguments
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    return made


def _compute_mean_loss(history: list[dict[str, Any]], since_start: float) -> float:
    """Over all steps, those before a checkpoint too. `since_start`: over those of this process."""
    logged = [(0, 0.0), *((row["step"], row["loss"]) for row in history if "loss" in row)]
    weights = [here[0] - before[0] for before, here in itertools.pairwise(logged)]
    if not sum(weights):
        return since_start
    return sum(weight * loss for weight, (_, loss) in zip(weights, logged[1:], strict=True)) / sum(weights)


def _count_tokens(history: list[dict[str, Any]]) -> int:
    return int(next((row["num_tokens"] for row in reversed(history) if "num_tokens" in row), 0))


def _check_device(trainer: TrainerSpec, device: Device) -> None:
    for key, wanted in {
        "activation_offloading": trainer.activation_offloading,
        "use_liger_kernel": trainer.use_liger_kernel,
    }.items():
        if wanted and device.name == "cpu":
            raise ConfigError(f"trainer.{key}=true: is for a GPU, and this run is on the CPU; type trainer.{key}=false")


def _build_callbacks(report: MetricsCallback, trainer: TrainerSpec) -> list[Any]:
    patience = trainer.early_stopping_patience
    return [report, *([EarlyStoppingCallback(patience)] if patience else [])]


def _build_optimizer(model: Any, arguments: TrainingArguments, method: MethodHooks) -> Any:
    return method.optimizer(*Trainer.get_optimizer_cls_and_kwargs(arguments, model)) if method.optimizer else None


def _build_arguments(trainer: TrainerSpec, device: Device, seed: int, out_dir: Path) -> dict[str, Any]:
    return {
        **usage.collect_kwargs(trainer, ("early_stopping_patience",), _list_unused_keys(trainer)),
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "prediction_loss_only": True,
        **_build_distributed_args(device),
        "output_dir": str(out_dir / CHECKPOINTS),
        "seed": seed,
        "data_seed": seed,
        # The base is already in its dtype. On a GPU autocast also computes the float32 adapter in it; on a CPU that costs more than it saves.
        "bf16": device.name == "cuda" and device.dtype == torch.bfloat16,
        "fp16": device.dtype == torch.float16,
        "use_cpu": device.name == "cpu",
        "dataloader_pin_memory": device.name == "cuda",
        "disable_tqdm": True,
        "report_to": "none",
        "logging_first_step": True,  # a figure at once, however slow the machine
        "restore_callback_states_from_checkpoint": True,  # how long early stopping has waited already
        "logging_nan_inf_filter": False,  # the default hides a loss that is no number
    }


def _list_unused_keys(trainer: TrainerSpec) -> list[str]:
    """What means nothing beside another value."""
    adam = trainer.optim.startswith(("adamw", "paged_adamw"))
    return [
        *(["num_train_epochs"] if trainer.max_steps > 0 else []),
        *(["save_steps"] if trainer.save_strategy != "steps" else []),
        *(["save_total_limit"] if trainer.save_strategy == "no" else []),
        *(["eval_steps"] if trainer.eval_strategy != "steps" else []),
        *([] if adam or trainer.optim.startswith("lion") else ["adam_beta1", "adam_beta2"]),
        *([] if adam else ["adam_epsilon"]),
    ]


def _build_distributed_args(device: Device) -> dict[str, Any]:
    """How accelerate is told of several processes."""
    if device.strategy == "fsdp":
        return {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    return (
        {"deepspeed": str(Path(device.deepspeed_config or "").expanduser())} if device.strategy == "deepspeed" else {}
    )


def _restore_router_config(model: Any, routing: dict[str, Any]) -> None:
    """Takes back what TRL has changed: a mixture of experts returns its router's choices, which fails where a cache is used."""
    for key, value in routing.items():
        setattr(model.config, key, value)


@contextlib.contextmanager
def _suppress_output() -> Iterator[None]:
    """What the libraries print while a trainer is built goes nowhere."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
