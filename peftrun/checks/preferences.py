"""Rules between a preference or reward objective, its data, the method and the trainer. Light."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from peftrun.artifacts import adapter_rules
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.config.schema.lora import NoAdapter
from peftrun.config.schema.method_traits import get_init_traits
from peftrun.config.schema.objectives import DpoObjective, GrpoObjective, KtoObjective, OrpoObjective, RewardObjective

Lines = Iterator[str]
KIND_OBJECTIVES: dict[str, tuple[type, ...]] = {
    "preference": (DpoObjective, OrpoObjective, RewardObjective),
    "unpaired_preference": (KtoObjective,),
    "prompt_only": (GrpoObjective,),
}
TASK_ADVICE = {
    "preference": "task=dpo, task=orpo or task=reward",
    "unpaired_preference": "task=kto",
    "prompt_only": "task=grpo",
}
SMOOTHED_LOSSES = {"robust", "exo_pair", "aot"}  # DPO losses of TRL that use label_smoothing


def check_objective(task: Any) -> Lines:
    """The objective is one that can be trained on rows of this task type."""
    objectives = KIND_OBJECTIVES.get(task.type)
    if objectives is None and task.objective is not None:
        yield f"task.objective: is for preferences and rewards, and task.type={task.type} is neither; type task.objective=null"
    elif objectives and not isinstance(task.objective, objectives):
        yield f"task.objective: task.type={task.type} needs an objective; type {TASK_ADVICE[task.type]}"


def check_columns(task: Any) -> Lines:
    """The columns of prompts and answers are set."""
    if task.type not in KIND_OBJECTIVES:
        return
    if (task.messages_column is None) == (task.prompt_template is None):
        yield "task.prompt_template: exactly one of task.prompt_template and task.messages_column is needed; type 'task.prompt_template=\"{COLUMN}\"'"
    if task.data.balance and task.type != "prompt_only":
        yield f"task.data.balance=true: counts labels, and task.type={task.type} has none; type task.data.balance=false"
    required = {"preference": ("chosen_column", "rejected_column"), "unpaired_preference": ("desirable_column",)}.get(
        task.type, ()
    )
    for key in required:
        if getattr(task, key) is None:
            yield f"task.{key} is not set; task.type={task.type} needs it: name a column"


def check_label_smoothing(task: Any) -> Lines:
    """TRL silently ignores label_smoothing in most DPO losses."""
    objective = task.objective
    if not isinstance(objective, DpoObjective):
        return
    if objective.label_smoothing and not SMOOTHED_LOSSES & set(objective.loss_type):
        yield (
            f"task.objective.label_smoothing={objective.label_smoothing}: is only used by the losses {', '.join(sorted(SMOOTHED_LOSSES))}; "
            "type task.objective.loss_type=[robust], or task.objective.label_smoothing=0.0"
        )


def check_rewards(task: Any) -> Lines:
    """Each reward function has the key that it compares with."""
    objective = task.objective
    if not isinstance(objective, GrpoObjective):
        return
    if objective.reward_weights is not None and len(objective.reward_weights) != len(objective.rewards):
        yield (
            f"task.objective.reward_weights={objective.reward_weights}: must hold one for each of task.objective.rewards "
            f"({', '.join(objective.rewards)}); type task.objective.reward_weights=null"
        )
    if {"exact_answer", "contains_answer"} & set(objective.rewards) and task.completion_template is None:
        yield "task.completion_template is not set; rewards exact_answer and contains_answer compare with it: type 'task.completion_template=\"{COLUMN}\"'"
    if "near_length" in objective.rewards and objective.target_length is None:
        yield "task.objective.target_length is not set; reward near_length needs it: type task.objective.target_length=200"
    if "matches_pattern" in objective.rewards:
        try:
            re.compile(objective.pattern or "")
        except re.error as error:
            yield f"task.objective.pattern={objective.pattern}: is not a regular expression ({error}); fix it"
        if objective.pattern is None:
            yield "task.objective.pattern is not set; reward matches_pattern needs it: type task.objective.pattern='^yes|no$'"


def check_trainer(task: Any, trainer: Any) -> Lines:
    """The batch fits the objective, and no key for supervised fine-tuning is set that it would ignore."""
    if task.type not in KIND_OBJECTIVES:
        return
    if trainer.neftune_noise_alpha is not None:
        yield f"trainer.neftune_noise_alpha: is for supervised tasks, and task.type={task.type} is not; type trainer.neftune_noise_alpha=null"
    if trainer.label_smoothing_factor:
        yield "trainer.label_smoothing_factor: is for supervised tasks; type trainer.label_smoothing_factor=0.0"
    if trainer.train_sampling_strategy == "group_by_length":
        yield f"trainer.train_sampling_strategy=group_by_length: is for supervised tasks, and task.type={task.type} is not; type random"
    size = trainer.per_device_train_batch_size
    if isinstance(task.objective, GrpoObjective):
        # A group of answers to one prompt must not be split over two optimizer steps: advantages are relative to it.
        step_rows, group_size = size * trainer.gradient_accumulation_steps, task.objective.num_generations
        if step_rows % group_size:
            yield (
                f"task.objective.num_generations={group_size}: must divide trainer.per_device_train_batch_size × "
                f"gradient_accumulation_steps ({step_rows}); type trainer.per_device_train_batch_size={group_size}"
            )
    if isinstance(task.objective, KtoObjective) and size < 2 and task.objective.loss_type == "kto":
        yield "trainer.per_device_train_batch_size=1: KTO estimates its reference point within a batch; type trainer.per_device_train_batch_size=4"


def check_method(task: Any, lora: Any, action: Any) -> Lines:
    """The base model with adapters disabled is the reference model, or beneath it, so the method must not change it."""
    if task.type not in KIND_OBJECTIVES or action.name != "train":
        return
    if isinstance(lora, NoAdapter):
        yield f"lora=none: task.type={task.type} compares with the unchanged base model, which needs an adapter; type lora=lora"
    dropout = next((key for key in vars(lora) if key.endswith("dropout") and getattr(lora, key)), None)
    if dropout and not isinstance(task.objective, GrpoObjective):
        yield f"lora.{dropout}={getattr(lora, dropout)}: TRL turns dropout off for preferences; type lora.{dropout}=0.0"
    init = getattr(lora, "init_lora_weights", None)
    if get_init_traits(init).converted or get_init_traits(init).calibrated:
        yield f"lora.init_lora_weights={init}: task.type={task.type} compares with the unchanged base model; type lora.init_lora_weights=true"


def check_reference(
    task: Any, lora: Any, action: Any, adapter: dict[str, str], adapters: dict[str, AdapterRef]
) -> Lines:
    """The reference model is there, and can be held beside the adapter that is trained."""
    objective, key = task.objective, "task.objective.reference"
    chosen = getattr(objective, "reference", None)
    if isinstance(objective, GrpoObjective) and not objective.beta:
        if chosen:
            yield f"{key}={chosen}: task.objective.beta=0.0 compares with no reference model; type task.objective.beta=0.04, or {key}=null"
        return
    if action.name != "train" or not hasattr(objective, "reference") or chosen == "base":
        return
    if chosen == "parent" and not adapter:
        yield f"{key}=parent: is the adapter that is trained further, and none is; type adapter=RUN_FOLDER, or {key}=base"
    for parent in adapters.values() if not action.stack else ():  # of a stack the adapter below is there once
        if reason := adapter_rules.why_not_twice(parent.config):
            yield f"{parent.option}: {reason}, so it cannot be held a second time, as the reference model; type {key}=base"
        if getattr(lora, "lora_fa", False):
            yield f"lora.lora_fa=true: PEFT's optimizer moves every adapter of the model, also the reference; type {key}=base"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("task",), check_objective),
    (("task",), check_columns),
    (("task",), check_rewards),
    (("task",), check_label_smoothing),
    (("task", "trainer"), check_trainer),
    (("task", "lora", "action"), check_method),
    (("task", "lora", "action", "adapter", "adapters"), check_reference),
]
