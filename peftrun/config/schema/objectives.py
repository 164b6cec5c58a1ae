"""Training objectives of preferences and rewards: `task.objective`. Field names are those of TRL's configs."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from peftrun.config.schema.functions import FunctionReference
from peftrun.config.schema.lora import STRICT, Positive

Reference = Literal["parent", "base"] | None
Beta = Annotated[float, Field(ge=0, examples=[0.1])]
Rewards = Literal["exact_answer", "contains_answer", "matches_pattern", "valid_json", "near_length"]


@dataclass(config=STRICT)
class DpoObjective:
    """Passed to `trl.DPOConfig`, except `reference`."""

    name: Literal["dpo"]
    beta: Beta
    loss_type: Annotated[
        list[Literal["sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "apo_zero", "apo_down", "sft"]],
        Field(min_length=1, examples=["[sigmoid]"]),
    ]  # fmt: skip
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, examples=[0.1])]
    reference: Reference  # the reference model: the adapter that is trained further, as it was, or the base model; null: the first if there is one


@dataclass(config=STRICT)
class KtoObjective:
    """Passed to `trl.KTOConfig`, except `reference`."""

    name: Literal["kto"]
    beta: Beta
    loss_type: Literal["kto", "apo_zero_unpaired"]
    desirable_weight: Annotated[float, Field(gt=0, examples=[1.0])]
    undesirable_weight: Annotated[float, Field(gt=0, examples=[1.0])]
    reference: Reference  # the reference model: see DpoObjective


@dataclass(config=STRICT)
class OrpoObjective:
    """Passed to `trl.experimental.orpo.ORPOConfig`. There is no reference model."""

    name: Literal["orpo"]
    beta: Beta  # weight of the odds-ratio loss, added to the likelihood loss of the chosen answer


@dataclass(config=STRICT)
class RewardObjective:
    """Passed to `trl.RewardConfig`. The base model gets a head with one output."""

    name: Literal["reward"]
    center_rewards_coefficient: Annotated[float, Field(gt=0, examples=[0.01])] | None


@dataclass(config=STRICT)
class GrpoObjective:
    """Passed to `trl.GRPOConfig`, except `reference` and the last three, which define the rewards."""

    name: Literal["grpo"]
    beta: Beta
    num_generations: Annotated[int, Field(ge=2, examples=[4])]
    max_completion_length: Annotated[int, Field(ge=1, examples=[64])]
    temperature: Annotated[float, Field(gt=0, examples=[1.0])]
    top_p: Annotated[float, Field(gt=0, le=1, examples=[1.0])]
    epsilon: Annotated[float, Field(gt=0, lt=1, examples=[0.2])]
    num_iterations: Positive
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo"]
    scale_rewards: Literal["group", "batch", "none"]
    reference: Reference  # the reference model, if beta is not 0: see DpoObjective
    reward_weights: list[float] | None  # one per reward; null: 1 each
    rewards: Annotated[list[Rewards | FunctionReference], Field(min_length=1, examples=["[exact_answer]"])]
    pattern: str | None  # for matches_pattern: a regular expression
    target_length: Positive | None  # for near_length, in characters


Objective = Annotated[
    DpoObjective | KtoObjective | OrpoObjective | RewardObjective | GrpoObjective, Field(discriminator="name")
]
