"""What must hold between a preference or reward objective, its data, the method and the loop; light."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from peftrun.artifacts.adapter_rules import CONVERTED_INITS
from peftrun.config.schema.lora import NoAdapter
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
SMOOTHED_LOSSES = {"robust", "exo_pair", "aot"}


def check_objective(task: Any) -> Lines:
    """The objective is one that this kind of rows can teach."""
    wanted = KIND_OBJECTIVES.get(task.kind)
    if wanted is None and task.objective is not None:
        yield f"task.objective: is of preferences and rewards, and task.kind={task.kind} is neither; type task.objective=null"
    elif wanted and not isinstance(task.objective, wanted):
        yield f"task.objective: task.kind={task.kind} needs one of its own; type {TASK_ADVICE[task.kind]}"


def check_columns(task: Any) -> Lines:
    """Where prompts and answers are found."""
    if task.kind not in KIND_OBJECTIVES:
        return
    if (task.messages is None) == (task.prompt is None):
        yield "task.prompt: exactly one of task.prompt and task.messages is needed; type 'task.prompt=\"{COLUMN}\"'"
    if task.data.balance and task.kind != "prompt_only":
        yield f"task.data.balance=true: counts labels, and task.kind={task.kind} has none; type task.data.balance=false"
    needed = {"preference": ("chosen", "rejected"), "unpaired_preference": ("desirable",)}.get(task.kind, ())
    for key in needed:
        if getattr(task, key) is None:
            yield f"task.{key} is not set; task.kind={task.kind} needs it: name a column"


def check_label_smoothing(task: Any) -> Lines:
    """TRL smooths labels in some losses only, and says nothing in the others."""
    found = task.objective
    if isinstance(found, DpoObjective) and found.label_smoothing and not SMOOTHED_LOSSES & set(found.loss_type):
        yield (
            f"task.objective.label_smoothing={found.label_smoothing}: is read by the losses {', '.join(sorted(SMOOTHED_LOSSES))} alone; "
            "type task.objective.loss_type=[robust], or task.objective.label_smoothing=0.0"
        )


def check_rewards(task: Any) -> Lines:
    """Each reward has what it compares with."""
    found = task.objective
    if not isinstance(found, GrpoObjective):
        return
    if found.reward_weights is not None and len(found.reward_weights) != len(found.rewards):
        yield (
            f"task.objective.reward_weights={found.reward_weights}: must hold one for each of task.objective.rewards "
            f"({', '.join(found.rewards)}); type task.objective.reward_weights=null"
        )
    if {"exact_answer", "contains_answer"} & set(found.rewards) and task.completion is None:
        yield "task.completion is not set; rewards exact_answer and contains_answer compare with it: type 'task.completion=\"{COLUMN}\"'"
    if "near_length" in found.rewards and found.target_length is None:
        yield "task.objective.target_length is not set; reward near_length needs it: type task.objective.target_length=200"
    if "matches_pattern" in found.rewards:
        try:
            re.compile(found.pattern or "")
        except re.error as error:
            yield f"task.objective.pattern={found.pattern}: is no regular expression ({error}); mend it"
        if found.pattern is None:
            yield "task.objective.pattern is not set; reward matches_pattern needs it: type task.objective.pattern='^yes|no$'"


def check_trainer(task: Any, trainer: Any) -> Lines:
    """The batch that the objective can be computed on."""
    if task.kind not in KIND_OBJECTIVES:
        return
    if trainer.neftune_noise_alpha is not None:
        yield f"trainer.neftune_noise_alpha: is for supervised tasks, and task.kind={task.kind} is none; type trainer.neftune_noise_alpha=null"
    if trainer.label_smoothing_factor:
        yield "trainer.label_smoothing_factor: is for supervised tasks; type trainer.label_smoothing_factor=0.0"
    if trainer.train_sampling_strategy == "group_by_length":
        yield f"trainer.train_sampling_strategy=group_by_length: is for supervised tasks, and task.kind={task.kind} is none; type random"
    size = trainer.per_device_train_batch_size
    if isinstance(task.objective, GrpoObjective):
        many, asked = size * trainer.gradient_accumulation_steps, task.objective.num_generations
        if many % asked:
            yield (
                f"task.objective.num_generations={asked}: must divide trainer.per_device_train_batch_size × "
                f"gradient_accumulation_steps ({many}); type trainer.per_device_train_batch_size={asked}"
            )
    if isinstance(task.objective, KtoObjective) and size < 2 and task.objective.loss_type == "kto":
        yield "trainer.per_device_train_batch_size=1: KTO estimates its reference point within a batch; type trainer.per_device_train_batch_size=4"


def check_method(task: Any, lora: Any, action: Any) -> Lines:
    """The reference is the base with the adapter off, so the adapter must leave the base alone."""
    if task.kind not in KIND_OBJECTIVES or action.name != "train":
        return
    if isinstance(lora, NoAdapter):
        yield f"lora=none: task.kind={task.kind} compares with the base, which an adapter leaves as it is; type lora=lora"
    dropout = next((key for key in vars(lora) if key.endswith("dropout") and getattr(lora, key)), None)
    if dropout and not isinstance(task.objective, GrpoObjective):
        yield f"lora.{dropout}={getattr(lora, dropout)}: TRL turns dropout off for preferences; type lora.{dropout}=0.0"
    start = str(getattr(lora, "init_lora_weights", ""))
    if start.startswith((*CONVERTED_INITS, "eva")):
        yield f"lora.init_lora_weights={start}: task.kind={task.kind} compares with the untouched base; type lora.init_lora_weights=true"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("task",), check_objective),
    (("task",), check_columns),
    (("task",), check_rewards),
    (("task",), check_label_smoothing),
    (("task", "trainer"), check_trainer),
    (("task", "lora", "action"), check_method),
]
