"""The task's metrics on the validation rows, at each evaluation during training: the same that are measured before and after it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from transformers.trainer_utils import EvalLoopOutput

from peftrun import console
from peftrun.checks import metric_names
from peftrun.checks.metric_names import LOSS
from peftrun.config import usage
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError
from peftrun.system.random_state import keep_random_state
from peftrun.tasks.rows.causal_lm import split_answers
from peftrun.training import cpu_attention, distributed

Measure = Callable[[], dict[str, float]]
TEXT_TASKS = ("causal_lm", "seq2seq")  # whose metrics beside the loss cost a second pass: only if they are asked for
PREFIX = "eval_"  # transformers puts it before the name of each metric


def build_measure(
    session: Any, model: Any, use_model: Callable[[], AbstractContextManager[Any]], eager_attention: bool
) -> Measure | None:
    """Computes the metrics on the validation rows, and leaves random state and model as they were; None: only the loss is needed.

    Args: session: a `TrainingSession`. use_model: within its block `model` computes with what is trained. eager_attention: the training uses it.
    """
    spec: RunSpec = session.spec
    if not is_needed(spec):
        return None
    if spec.device.strategy in metric_names.SHARDED:
        console.print_info(
            f"device.strategy={spec.device.strategy}: only the loss is measured during training, since no process has the whole model"
        )
        return None
    _report_direction(spec)
    rows = session.rows.train[: spec.task.data.num_validation_rows]
    if spec.task.type == "causal_lm" and spec.task.loss_on == "assistant":
        rows = [answer for row in rows for answer in split_answers(row)]
    batch_size = spec.trainer.per_device_eval_batch_size

    def measure() -> dict[str, float]:
        with use_model(), keep_random_state(), cpu_attention.use_fused_attention(session.base.model, eager_attention):
            return dict(session.task_module.evaluate(model, session.base.tokenizer, rows, batch_size, spec.task))

    return measure


def is_needed(spec: RunSpec) -> bool:
    """Whether more than the loss is computed at an evaluation during training."""
    plain = usage.strip_tracking(spec)
    if plain.trainer.eval_strategy == "no" or not plain.task.data.num_validation_rows:
        return False
    asked = bool(plain.task.metrics) or plain.trainer.metric_for_best_model != LOSS
    return asked or plain.task.type not in TEXT_TASKS


def _report_direction(spec: RunSpec) -> None:
    name = spec.trainer.metric_for_best_model
    if spec.trainer.greater_is_better is None and name not in metric_names.list_built_in_names(spec.task):
        console.print_info(
            f"trainer.metric_for_best_model={name}: a higher value is taken as better (trainer.greater_is_better=false for lower)"
        )


def check_best_metric(spec: RunSpec, metrics: dict[str, float]) -> None:
    """Raises: ConfigError: the metrics, as computed before training, lack the one that the best checkpoint is chosen by."""
    name = usage.strip_tracking(spec).trainer.metric_for_best_model
    if is_needed(spec) and name not in metrics:
        raise ConfigError(metric_names.explain_unknown_metric(name, list(metrics)))


def add_to_evaluations(trainer: Any, measure: Measure, objective: Any, measured: set[str]) -> None:
    """Makes a Trainer add the metrics to those of each evaluation, as `eval_NAME`: logged, and a choice for the best checkpoint.

    TRL's own evaluation of GRPO samples answers, and its loss is about 0 for all of them; it is replaced by ours, whose loss is minus the reward.
    Args: measured: gets their names, since the libraries add timings and figures of their own.
    """
    evaluation_loop = trainer.evaluation_loop

    def evaluate(dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        if isinstance(objective, GrpoObjective):
            trainer.model.eval()  # TRL logs by the model's mode, which is set again before the next step
            output = EvalLoopOutput(None, None, {}, len(dataloader.dataset))
        else:
            output = evaluation_loop(dataloader, *args, **kwargs)
        metrics = distributed.broadcast_from_main(measure)
        best = trainer.args.metric_for_best_model.removeprefix(PREFIX)
        if best not in metrics:
            raise ConfigError(metric_names.explain_unknown_metric(best, list(metrics)))
        for name, value in metrics.items():
            output.metrics.setdefault(PREFIX + name, value)  # the loss is the loop's own, with packing and smoothing
            measured.add(PREFIX + name)
        return output

    trainer.evaluation_loop = evaluate
