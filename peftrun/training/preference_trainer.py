"""Loops for preferences and rewards: TRL's own, each with its config, all given their objective whole."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import Trainer
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, RewardTrainer

from peftrun import console
from peftrun.config import usage
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.tasks import rewards
from peftrun.training.pretokenized import TokenizedDPO, TokenizedGRPO, TokenizedKTO

REWARD_FIELDS = ("rewards", "pattern", "target_length")  # fields of an objective that say what is rewarded


def loop(model: Any, lesson: Any, given: dict[str, Any], **common: Any) -> Trainer:
    """The loop for an objective. `given`: training arguments by name. Rows were cut to length before."""
    name = lesson.objective.name
    arguments = {**given, **usage.collect_kwargs(lesson.objective, ("name", *REWARD_FIELDS))}
    rows = lesson.rows
    if name == "kto":  # it pairs each answer with its neighbour's prompt, so the order is drawn once, before
        rows = random.Random(lesson.seed).sample(rows, len(rows))
        arguments["train_sampling_strategy"] = "sequential"
        console.print_info("kto: one order of the rows for every epoch, drawn from the seed")
    common |= {"model": model, "train_dataset": Dataset.from_list(rows), "processing_class": lesson.tokenizer}
    if name == "dpo":
        return TokenizedDPO(args=_build_config(DPOConfig, arguments, max_length=None), **common)
    if name == "kto":
        return TokenizedKTO(args=_build_config(KTOConfig, arguments, max_length=None), **common)
    if name == "reward":
        return RewardTrainer(args=_build_config(RewardConfig, arguments, max_length=None), **common)
    if name == "orpo":
        from peftrun.training.orpo import ORPOConfig, TokenizedORPO

        return TokenizedORPO(args=_build_config(ORPOConfig, arguments, max_length=lesson.max_length), **common)
    scorers = [_build_reward_func(reward, lesson.objective) for reward in lesson.objective.rewards]
    return TokenizedGRPO(reward_funcs=scorers, args=_build_config(GRPOConfig, arguments), **common)


def _build_config(kind: type, arguments: dict[str, Any], **more: Any) -> Any:
    """A config of this kind. Raises: ValueError: something is switched on that this loop does not have."""
    known = {field.name for field in dataclasses.fields(kind)}
    for key in sorted(arguments.keys() - known):
        if arguments[key]:
            raise ValueError(f"{key}={arguments[key]}: {kind.__name__} has no such thing; type trainer.{key}=false")
    return kind(**{key: value for key, value in arguments.items() if key in known}, **more)


def _build_reward_func(name: str, objective: GrpoObjective) -> Callable[..., list[float]]:
    """A reward as GRPOTrainer calls it: with all completions, and the rows' other columns."""
    score = rewards.get_reward_function(name, objective)

    def reward_func(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
        return [score(said, true) for said, true in zip(texts, answer, strict=True)]

    reward_func.__name__ = name
    return reward_func
