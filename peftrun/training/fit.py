"""From a model and rows to a trained model: what is common to all loops, TRL's, transformers' and that of a joint run."""

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

from peftrun import console
from peftrun.adapters.save import omit_model_card
from peftrun.artifacts.run_layout import CHECKPOINTS, METRICS
from peftrun.checks import metric_names
from peftrun.checks.device import list_gpu_options
from peftrun.compat.peft import leave_casts_to_autocast
from peftrun.config import usage
from peftrun.config.schema.optimizers import OPTIMIZERS, WITHOUT_WARMUP
from peftrun.config.schema.run import HUB_KEYS, TrainerSpec
from peftrun.errors import ConfigError
from peftrun.formatting import format_duration
from peftrun.models.device import Device
from peftrun.planning import throughput
from peftrun.system import determinism
from peftrun.training import (
    checkpoints,
    compiled_blocks,
    distributed,
    eval_loss,
    gpu_arguments,
    nan_guard,
    padding,
    sharded_checkpoints,
    unsaved_state,
    validation_metrics,
)
from peftrun.training.callbacks import MetricsCallback

ROUTER_KEYS = ("output_router_logits", "router_aux_loss_coef")  # keys of a mixture of experts that TRL changes
REFERENCE_ADAPTER = "ref"  # TRL's copy of an adapter before its first step
OWN_KEYS = ("early_stopping_patience", "torch_compile", "arguments", *HUB_KEYS)  # keys that peftrun reads itself


@dataclass(frozen=True)
class FitResult:
    """Optimizer steps, mean loss over all of them, seconds, tokens seen, and the step of the checkpoint that was the best, if it was loaded.

    Attributes:
        padding_share: of the positions that were computed; None: rows have no padding, or no tokens.
        gpu_choices: what a GPU was given in place of a default, such as `fused optimizer`.
    """

    steps: int
    train_loss: float
    seconds: float
    tokens: int
    best_step: int | None = None
    best_metric: str | None = None
    best_value: float | None = None
    padding_share: float | None = None
    gpu_choices: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """For the summary."""
        if not self.steps:
            return "no step: the weights are those that it started with"
        return f"{self.steps} steps in {format_duration(self.seconds)}, mean loss {self.train_loss:.4f}"

    def describe_best(self) -> list[tuple[str, str]]:
        """The row of the summary about the checkpoint that was loaded, if one was."""
        if self.best_step is None:
            return []
        return [("best", f"step {self.best_step}, with validation {self.best_metric} {self.best_value:.4f}")]


@dataclass(frozen=True)
class TrainingData:
    """Rows to train and validate on, and how they become batches.

    Attributes:
        rows: columns as the loop of the objective reads them, token ids.
        names: where each row comes from, for messages.
        collator: makes batches for transformers' Trainer; None: TRL's loops make their own.
        objective: of preferences and rewards; None: supervised.
        validation: rows on which the loss is measured during training.
        measure: computes further metrics on them; None: only the loss.
        digests: hashes of what the rows and the base model are made from; stored in each checkpoint.
    """

    rows: list[dict[str, Any]]
    names: list[str]
    tokenizer: Any
    seed: int
    max_length: int
    collator: Any = None
    objective: Any = None
    validation: list[dict[str, Any]] | None = None
    measure: validation_metrics.Measure | None = None
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodHooks:
    """What an adapter's method adds to the loop.

    Attributes:
        optimizer: from (class, arguments) of the loop's own optimizer to another optimizer, or None to keep the loop's.
        each_step: called with the step's number (from 1) once the weights have moved.
        begin: called before the first step, once the libraries have wrapped the model for training.
    """

    optimizer: Callable[[type, dict[str, Any]], Any] | None = None
    each_step: Callable[[int], None] | None = None
    begin: Callable[[], None] | None = None


NO_HOOKS = MethodHooks()
TrainerFactory = Callable[..., Trainer]


def count_steps(trainer: TrainerSpec, rows: int) -> int:
    """Optimizer steps of a run over so many rows."""
    return throughput.count_optimizer_steps(trainer, rows) or 0


def fit(model: Any, data: TrainingData, trainer: TrainerSpec, device: Device, out_dir: Path, *,
        checkpoint: Path | None, method: MethodHooks = NO_HOOKS, maker: TrainerFactory | None = None) -> FitResult:  # fmt: skip
    """Trains the parameters of `model` that require a gradient, in place; logs and checkpoints go below `out_dir`.

    Args: maker: builds the Trainer instead of the objective's own loop; for a cell of a joint run, which shows no progress
        of its own.

    Raises: ConfigError: TRL or transformers refuse the arguments. DataError: the loss is no longer finite.
    """
    problems = list(list_gpu_options(device, trainer, device.name))
    if problems:
        raise ConfigError(*problems)
    callback = MetricsCallback(out_dir / METRICS, data.digests, method.each_step, method.begin, shown=maker is None)
    patience = trainer.early_stopping_patience
    arguments = _build_arguments(trainer, device, data.seed, len(data.rows), out_dir)
    gpu_choices = gpu_arguments.set_gpu_arguments(arguments, trainer, device, model, data) if maker is None else ()
    compile_options = {name: arguments.pop(name) for name in compiled_blocks.ARGUMENTS if name in arguments}
    initial = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {
        "callbacks": [callback, *([EarlyStoppingCallback(patience)] if patience else [])],
        "optimizers": (_build_optimizer(method, model, arguments), None),
        **({"eval_dataset": Dataset.from_list(data.validation)} if data.validation else {}),
    }
    with _keep_router_config(model.config):
        hf_trainer = _build_trainer(maker, model, data, arguments, options)
        if REFERENCE_ADAPTER in getattr(model, "peft_config", {}):
            # TRL's reference is a copy of the fresh adapter; without it TRL takes the base model with the adapter disabled.
            model.delete_adapter(REFERENCE_ADAPTER)
        for parameter, value in initial:
            # TRL casts an adapter on a quantized base model to bfloat16; the saved adapter would then answer differently.
            parameter.data = value
        padded = _patch_trainer(hf_trainer, data, callback)
        with (
            contextlib.closing(callback),
            compiled_blocks.compile_blocks(model, trainer.torch_compile, compile_options),
            leave_casts_to_autocast(model, enabled=bool(arguments["bf16"] or arguments["fp16"])),
            determinism.use_tf32(device.tf32),
        ):
            output = hf_trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _finish_optimizer(hf_trainer.optimizer)
    model.eval()
    result = _build_result(output, hf_trainer.state, trainer)
    return dataclasses.replace(result, padding_share=padded.compute_share(), gpu_choices=gpu_choices)


@contextlib.contextmanager
def _keep_router_config(config: Any) -> Iterator[None]:
    """Restores what TRL changes: a mixture of experts returns its router's logits then, which fails where a key-value cache is used."""
    before = {key: getattr(config, key) for key in ROUTER_KEYS if hasattr(config, key)}
    try:
        yield
    finally:
        for key, value in before.items():
            setattr(config, key, value)


def _build_optimizer(method: MethodHooks, model: Any, arguments: dict[str, Any]) -> Any:
    """The optimizer that the method brings; None: the loop's own."""
    if method.optimizer is None:
        return None
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    plain = TrainingArguments(**{key: arguments[key] for key in arguments.keys() & names})
    return method.optimizer(*Trainer.get_optimizer_cls_and_kwargs(plain, model))


def _build_result(output: Any, state: Any, trainer: TrainerSpec) -> FitResult:
    history = state.log_history
    tokens = next((row["num_tokens"] for row in reversed(history) if "num_tokens" in row), 0)
    mean_loss = _compute_mean_loss(history, output.training_loss)
    result = FitResult(output.global_step, mean_loss, output.metrics["train_runtime"], int(tokens))
    if not trainer.load_best_model_at_end:
        return result
    name = trainer.metric_for_best_model
    if state.best_global_step == 1 and any(row["step"] == 1 and row.get("learning_rate") == 0 for row in history):
        console.print_warning(
            "the best checkpoint is that of step 1, whose learning rate is 0 (warm-up): the adapter has learned nothing; "
            "type trainer.warmup_steps=0, or a larger trainer.eval_steps"
        )
    return dataclasses.replace(result, best_step=state.best_global_step, best_metric=name, best_value=state.best_metric)


def _build_trainer(
    maker: TrainerFactory | None, model: Any, data: TrainingData, arguments: dict[str, Any], options: dict[str, Any]
) -> Trainer:
    # Imported late: TRL takes a second to import, which a training that is refused need not wait for.
    module = "sft_trainer" if data.objective is None else "preference_trainer"
    build = maker or import_module(f"peftrun.training.{module}").build_trainer
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            hf_trainer: Trainer = build(model, data, arguments, **options)
    except ValueError as error:  # the libraries own the rules between their own arguments
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    return hf_trainer


def _patch_trainer(hf_trainer: Any, data: TrainingData, shown: MetricsCallback) -> padding.PaddingCount:
    """What no option of transformers or TRL does: one call a behavior, each explained where it is defined. Padding is counted from here on."""
    distributed.prepare_sharding(hf_trainer)
    sharded_checkpoints.write_whole_checkpoints(hf_trainer)
    _explain_optimizer_errors(hf_trainer)
    nan_guard.raise_on_nan_loss(hf_trainer, data.rows, data.names, data.tokenizer)
    checkpoints.stop_where_ended(hf_trainer)
    unsaved_state.keep_adapter_state(hf_trainer)
    eval_loss.average_over_rows(hf_trainer)
    if data.measure:
        validation_metrics.add_to_evaluations(hf_trainer, data.measure, data.objective, shown.measured)
    hf_trainer.create_model_card = lambda *_, **__: None  # TRL writes one into each checkpoint's folder
    omit_model_card(hf_trainer.model)
    for callback in (PrinterCallback, ProgressCallback):
        hf_trainer.remove_callback(callback)
    return padding.count_padding(hf_trainer)


def _explain_optimizer_errors(hf_trainer: Any) -> None:
    """What an optimizer refuses, as it is made before the first step, becomes one line."""
    create = hf_trainer.create_optimizer

    def create_optimizer(*args: Any) -> Any:
        try:
            return create(*args)
        except (ValueError, TypeError, ImportError, NotImplementedError) as error:
            raise ConfigError(f"trainer.optim={hf_trainer.args.optim.value}: {' '.join(str(error).split())}") from error

    hf_trainer.create_optimizer = create_optimizer


def _finish_optimizer(optimizer: Any) -> None:
    """A schedule-free optimizer puts its averaged weights, which are what it learned, into the model."""
    if callable(getattr(optimizer, "eval", None)):
        optimizer.eval()


def _compute_mean_loss(history: list[dict[str, Any]], since_start: float) -> float:
    """Mean loss over all steps, those before a checkpoint too. Args: since_start: the mean over the steps of this process."""
    logged = [(0, 0.0), *((row["step"], row["loss"]) for row in history if "loss" in row)]
    # A logged loss is the mean over the steps since the row before it.
    weights = [later[0] - earlier[0] for earlier, later in itertools.pairwise(logged)]
    if not sum(weights):
        return since_start
    return sum(weight * loss for weight, (_, loss) in zip(weights, logged[1:], strict=True)) / sum(weights)


def get_autocast_dtype(device: Device) -> torch.dtype | None:
    """The dtype of autocast while training in bfloat16; None: no autocast.

    The base model is already in its dtype. On a GPU autocast also computes the float32 adapter in it; on a CPU autocast costs more than
    it saves.
    """
    return torch.bfloat16 if device.name == "cuda" and device.dtype == torch.bfloat16 else None


def _build_arguments(trainer: TrainerSpec, device: Device, seed: int, rows: int, out_dir: Path) -> dict[str, Any]:
    """Training arguments by name: those of the config, and those that peftrun decides."""
    warmup = 0.0 if trainer.lr_scheduler_type in WITHOUT_WARMUP else trainer.warmup_steps
    total = count_steps(trainer, rows)
    if warmup < 1 and math.ceil(warmup * total) >= total:
        # A share of the steps is rounded up: a very short run would be all warm-up, at a learning rate near zero.
        warmup = float(total - 1)
    sharding: dict[str, Any] = {}
    if device.strategy == "fsdp":
        # Checkpoints of a model that is trained whole are sharded; of adapters see `sharded_checkpoints`.
        options = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "SHARDED_STATE_DICT"}
        sharding = {"fsdp": True, "fsdp_config": {"version": 2, **options}}
    elif device.strategy == "deepspeed":
        sharding = {"deepspeed": str(Path(device.deepspeed_config or "").expanduser())}
    return {
        **usage.collect_kwargs(trainer, OWN_KEYS, _list_unused_keys(trainer)),
        "use_liger_kernel": bool(trainer.use_liger_kernel),  # null: set_gpu_arguments chooses
        "warmup_steps": warmup,
        **_choose_best_metric(trainer),
        "prediction_loss_only": True,
        **sharding,
        "output_dir": str(out_dir / CHECKPOINTS),
        "seed": seed,
        "data_seed": seed,
        "bf16": get_autocast_dtype(device) is not None,
        "fp16": device.dtype == torch.float16,
        "use_cpu": device.name == "cpu",
        "dataloader_pin_memory": device.name == "cuda",
        "disable_tqdm": True,
        "report_to": "none",
        "logging_first_step": True,  # a first figure at once, however slow the machine
        "restore_callback_states_from_checkpoint": True,  # early stopping goes on counting where it was
        "logging_nan_inf_filter": False,  # the default replaces a nan loss in the log by the mean of the others
        **(trainer.arguments or {}),
    }


def _choose_best_metric(trainer: TrainerSpec) -> dict[str, Any]:
    if trainer.eval_strategy == "no":
        return {}
    name = f"{validation_metrics.PREFIX}{trainer.metric_for_best_model}"
    return {"metric_for_best_model": name, "greater_is_better": metric_names.is_higher_better(trainer)}


def _list_unused_keys(trainer: TrainerSpec) -> list[str]:
    """Keys that the value of another key makes ineffective."""
    traits = OPTIMIZERS[trainer.optim]
    return [
        *(["num_train_epochs"] if trainer.max_steps >= 0 else []),
        *(["save_steps"] if trainer.save_strategy != "steps" else []),
        *(["save_total_limit"] if trainer.save_strategy == "no" else []),
        *(["eval_steps"] if trainer.eval_strategy != "steps" else []),
        *(["metric_for_best_model", "greater_is_better"] if trainer.eval_strategy == "no" else []),
        *(["warmup_steps"] if trainer.lr_scheduler_type in WITHOUT_WARMUP else []),
        *([] if traits.betas else ["adam_beta1", "adam_beta2"]),
        *([] if traits.epsilon else ["adam_epsilon"]),
    ]
