"""Loops for preferences and rewards: TRL's own, each with its own config class, which gets the whole objective."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import Trainer
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, RewardTrainer

from peftrun import console
from peftrun.artifacts import function_files
from peftrun.compat.transformers import use_one_gpu
from peftrun.config import usage
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.tasks import rewards
from peftrun.tasks.own_functions import Completions
from peftrun.training.pretokenized import TokenizedDPO, TokenizedGRPO, TokenizedKTO

# What TRL passes to a reward function beside the row's columns.
TRL_ARGUMENTS = ("trainer_state", "log_extra", "log_metric")
OWN_FIELDS = (
    "name",
    "reference",
    "rewards",
    "pattern",
    "target_length",
)  # fields of an objective that are none of TRL's


def build_trainer(model: Any, data: Any, arguments: dict[str, Any], **options: Any) -> Trainer:
    """The Trainer for the objective of `data` (a `fit.TrainingData`). Args: arguments: training arguments by name.

    Raises: ValueError: an argument is switched on that the objective's loop does not have.
    """
    name, rows = data.objective.name, data.rows
    arguments = {**arguments, **usage.collect_kwargs(data.objective, OWN_FIELDS)}
    if name == "kto":
        # TRL pairs each answer with its neighbor's prompt when the dataset is prepared, so the order is drawn before that.
        rows = random.Random(data.seed).sample(rows, len(rows))
        arguments["train_sampling_strategy"] = "sequential"
        console.print_info("kto: one order of the rows for every epoch, drawn from the seed")
    options |= {"model": model, "train_dataset": Dataset.from_list(rows), "processing_class": data.tokenizer}
    # Rows were cut to length when they were tokenized: max_length=None keeps the loops from cutting them again.
    if name == "dpo":
        return TokenizedDPO(args=_build_config(DPOConfig, arguments, max_length=None), **options)
    if name == "kto":
        return TokenizedKTO(args=_build_config(KTOConfig, arguments, max_length=None), **options)
    if name == "reward":
        return RewardTrainer(args=_build_config(RewardConfig, arguments, max_length=None), **options)
    if name == "orpo":
        from peftrun.training.orpo import ORPOConfig, TokenizedORPO

        return TokenizedORPO(args=_build_config(ORPOConfig, arguments, max_length=data.max_length), **options)
    reward_funcs = [_build_reward_func(reward, data.objective) for reward in data.objective.rewards]
    return TokenizedGRPO(reward_funcs=reward_funcs, args=_build_config(GRPOConfig, arguments), **options)


def _build_config(config_class: type, arguments: dict[str, Any], **fixed: Any) -> Any:
    """A config of this class. Raises: ValueError: an argument is switched on that the class does not have."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    for key in sorted(arguments.keys() - fields):
        if arguments[key]:
            raise ValueError(
                f"{key}={arguments[key]}: {config_class.__name__} has no such option; type trainer.{key}=false"
            )
    return use_one_gpu(config_class(**{key: value for key, value in arguments.items() if key in fields}, **fixed))


def _build_reward_func(name: str, objective: GrpoObjective) -> Callable[..., list[float]]:
    """A reward function as GRPOTrainer calls it: with all completions of a batch, and the rows' other columns."""

    def reward_func(
        completions: list[Any], completion_ids: list[list[int]], answer: list[str], **others: Any
    ) -> list[float]:
        # A completion is a text, or a conversation of one message where the prompt was one.
        texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
        extras = {key: value for key, value in others.items() if key in TRL_ARGUMENTS}
        columns, prompts, wheres = (others.get(key, []) for key in ("columns", "spelled", "where"))
        batch = Completions(texts, completion_ids, answer, columns, prompts, wheres, extras)
        return rewards.compute_rewards(name, objective, batch)

    reward_func.__name__ = function_files.get_name(name)  # TRL logs the reward under it
    return reward_func
