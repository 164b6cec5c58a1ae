"""Names of the metrics that each task type computes, and which of them a training may be judged by. Light."""

from collections.abc import Callable, Iterator
from typing import Any

from peftrun.artifacts import function_files
from peftrun.checks.unknown_keys import find_close_match
from peftrun.config.schema.objectives import RewardObjective
from peftrun.config.schema.run import TaskSpec, TrainerSpec

Lines = Iterator[str]
LOSS = "loss"
LANGUAGE_METRICS = (LOSS, "perplexity", "exact_match", "choice_accuracy")
METRICS: dict[str, tuple[str, ...]] = {
    "causal_lm": LANGUAGE_METRICS,
    "seq2seq": LANGUAGE_METRICS[:-1],
    "seq_cls": (LOSS, "accuracy", "macro_f1"),
    "token_cls": (LOSS, "token_accuracy", "precision", "recall", "f1"),
    "preference": (LOSS, "preference_accuracy", "margin", "likelihood_accuracy"),
    "unpaired_preference": (LOSS, "desirable_log_ratio", "undesirable_log_ratio", "auc"),
    "prompt_only": (LOSS, "reward"),
}
LOWER_IS_BETTER = (LOSS, "perplexity", "undesirable_log_ratio")
SHARDED = ("fsdp", "deepspeed")  # strategies under which no process has the whole model


def list_metric_names(task: TaskSpec) -> list[str]:
    """The metrics of a task, as far as they are known before they are computed: a function of the user may return a dict."""
    own = [function_files.get_name(text) for _, text in function_files.list_references(task)]
    return list_built_in_names(task) + own


def list_built_in_names(task: TaskSpec) -> list[str]:
    """Those of them that are not the user's own."""
    names = list(METRICS.get(task.type, (LOSS,)))
    if task.type == "causal_lm" and not task.data.labels:
        names.remove("choice_accuracy")
    if isinstance(task.objective, RewardObjective):
        names.remove("likelihood_accuracy")
    texts = [*(task.metrics or ()), *getattr(task.objective, "rewards", ())]
    return names + [text for text in texts if not function_files.is_reference(text)]


def is_higher_better(trainer: TrainerSpec) -> bool:
    """Whether a higher value of trainer.metric_for_best_model is better: known for built-in metrics, assumed for others."""
    known = trainer.metric_for_best_model not in LOWER_IS_BETTER
    return known if trainer.greater_is_better is None else trainer.greater_is_better


def explain_unknown_metric(name: str, names: list[str]) -> str:
    """The line for a trainer.metric_for_best_model that is not among the names."""
    bare = name.removeprefix("eval_")  # transformers' spelling
    advice = bare if bare in names else find_close_match(bare, names) or names[0]
    return f"trainer.metric_for_best_model={name}: the task has no such metric; metrics: {', '.join(names)}; type trainer.metric_for_best_model={advice}"


def check_best_metric(task: TaskSpec, trainer: TrainerSpec, device: Any) -> Lines:
    """The metric that decides which checkpoint is the best is one that is measured, and its direction is not turned around."""
    name, names = trainer.metric_for_best_model, list_metric_names(task)
    # A metric of the user may be any of the names that its function returns, which are known once it is called.
    if name not in names and not any(key == "task.metrics" for key, _ in function_files.list_references(task)):
        yield explain_unknown_metric(name, names)
        return
    is_built_in = name in METRICS.get(task.type, ())
    if is_built_in and trainer.greater_is_better not in (None, name not in LOWER_IS_BETTER):
        value, better = str(trainer.greater_is_better).lower(), "lower" if name in LOWER_IS_BETTER else "higher"
        yield f"trainer.greater_is_better={value}: a {better} {name} is better; type trainer.greater_is_better=null"
    if name != LOSS and trainer.eval_strategy != "no" and device.strategy in SHARDED:
        yield (
            f"trainer.metric_for_best_model={name}: during a training with device.strategy={device.strategy} only the loss is measured, "
            "since no process has the whole model; type trainer.metric_for_best_model=loss"
        )


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [(("task", "trainer", "device"), check_best_metric)]
