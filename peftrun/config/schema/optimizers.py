"""Optimizers and schedules by transformers' names, and what peftrun's rules need to know of each. Light.

`tests/test_library_arguments.py` holds them against transformers.
"""

from dataclasses import dataclass, replace
from typing import Literal

Optim = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor", "adamw_anyprecision",
    "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd", "adagrad", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit",
    "lion_8bit", "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "paged_lion_32bit", "paged_lion_8bit", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
    "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise", "lomo", "adalomo", "grokadamw", "schedule_free_radam", "schedule_free_adamw",
    "schedule_free_sgd", "apollo_adamw", "apollo_adamw_layerwise", "stable_adamw",
]  # fmt: skip
Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
]  # fmt: skip


@dataclass(frozen=True)
class OptimizerTraits:
    """An optimizer; by default one of torch's, element by element.

    Attributes:
        package: the one that has it, beside torch and transformers.
        settings: names in trainer.arguments.optim_args that transformers passes on to it.
        betas, epsilon: it uses trainer.adam_beta1 and adam_beta2, and trainer.adam_epsilon.
        state_bytes: of its state, per trained parameter.
        stacks: it can update tensors that are views of one buffer, as the adapters of a joint run are.
        low_rank: it projects the gradients of trainer.arguments.optim_target_modules.
        gpu: its package computes on a GPU alone.
        layerwise: it updates each tensor during the backward pass, so gradients cannot be accumulated.
    """

    package: str | None = None
    settings: tuple[str, ...] = ()
    betas: bool = False
    epsilon: bool = False
    state_bytes: int = 8
    stacks: bool = False
    low_rank: bool = False
    layerwise: bool = False
    gpu: bool = False


TORCH = OptimizerTraits(stacks=True)
ADAMW = OptimizerTraits(betas=True, epsilon=True, stacks=True)
BNB = OptimizerTraits("bitsandbytes", betas=True, epsilon=True)
BNB_8BIT = replace(BNB, state_bytes=2)
BNB_LION = replace(BNB, epsilon=False, state_bytes=4)
BNB_RMSPROP = OptimizerTraits(
    "bitsandbytes", state_bytes=4
)  # transformers 5.23 passes its settings on as text, which it cannot use
ADEMAMIX = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
TORCHAO = OptimizerTraits("torchao", ("block_size", "bf16_stochastic_round"), betas=True, epsilon=True, state_bytes=2)
GALORE = OptimizerTraits("galore_torch", ("rank", "update_proj_gap", "scale", "proj_type"), low_rank=True)
LOMO = OptimizerTraits("lomo_optim", state_bytes=0, layerwise=True)
SCHEDULE_FREE = OptimizerTraits("schedulefree", ("weight_lr_power", "r"))
APOLLO_SETTINGS = ("rank", "proj", "scale_type", "update_proj_gap", "scale", "proj_type")
APOLLO = OptimizerTraits("apollo_torch", APOLLO_SETTINGS, betas=True, epsilon=True, low_rank=True)
ANY_PRECISION = ("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype")
OPTIMIZERS: dict[str, OptimizerTraits] = {
    "adamw_torch": ADAMW,
    "adamw_torch_fused": ADAMW,
    "adamw_torch_xla": replace(ADAMW, package="torch_xla", stacks=False),
    "adamw_torch_npu_fused": replace(ADAMW, package="torch_npu", stacks=False),
    "adafactor": replace(TORCH, state_bytes=0),
    "adamw_anyprecision": replace(ADAMW, package="torchdistx", settings=ANY_PRECISION, stacks=False),
    "adamw_torch_4bit": replace(TORCHAO, state_bytes=1),
    "adamw_torch_8bit": TORCHAO,
    "ademamix": replace(BNB, settings=ADEMAMIX, state_bytes=12),
    "sgd": replace(TORCH, settings=("momentum", "dampening", "weight_decay", "nesterov"), state_bytes=0),
    "adagrad": replace(TORCH, settings=("lr_decay", "weight_decay", "eps"), state_bytes=4),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), BNB_8BIT),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), replace(BNB, settings=ADEMAMIX, state_bytes=3)),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit"), replace(BNB_LION, state_bytes=1)),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit"), BNB_LION),
    "paged_adamw_32bit": BNB,
    "paged_ademamix_32bit": replace(BNB, settings=ADEMAMIX, state_bytes=12),
    "rmsprop": replace(TORCH, settings=("momentum", "alpha", "eps", "weight_decay", "centered"), state_bytes=4),
    **dict.fromkeys(("rmsprop_bnb", "rmsprop_bnb_32bit"), BNB_RMSPROP),
    "rmsprop_bnb_8bit": replace(BNB_RMSPROP, state_bytes=1),
    **dict.fromkeys(("galore_adamw", "galore_adafactor"), GALORE),
    **dict.fromkeys(("galore_adamw_layerwise", "galore_adafactor_layerwise"), replace(GALORE, layerwise=True)),
    "galore_adamw_8bit": replace(GALORE, gpu=True),
    "galore_adamw_8bit_layerwise": replace(GALORE, layerwise=True, gpu=True),
    "lomo": LOMO,
    "adalomo": replace(LOMO, gpu=True),
    "grokadamw": OptimizerTraits(
        "grokadamw", ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"), state_bytes=12
    ),
    **dict.fromkeys(("schedule_free_radam", "schedule_free_adamw"), replace(SCHEDULE_FREE, betas=True, epsilon=True)),
    "schedule_free_sgd": replace(SCHEDULE_FREE, state_bytes=4),
    "apollo_adamw": APOLLO,
    "apollo_adamw_layerwise": replace(APOLLO, layerwise=True),
    "stable_adamw": OptimizerTraits("optimi", ("max_lr", "kahan_sum", "decouple_lr"), betas=True, epsilon=True),
}  # by `trainer.optim`
PLATEAU = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
MIN_LR = ("num_cycles", "min_lr", "min_lr_rate")
SCHEDULE_SETTINGS = {  # the keys of trainer.lr_scheduler_kwargs that transformers passes on to each schedule
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": MIN_LR,
    "cosine_warmup_with_min_lr": (*MIN_LR, "warmup_lr_rate"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "reduce_lr_on_plateau": PLATEAU,
    "warmup_stable_decay": (
        "num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles",
    ),
    "greedy": (*PLATEAU, "warmup", "max_lr", "verbose", "smooth", "window_size", "reset_start"),
}  # fmt: skip
MEASURED_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # follow the validation loss
WITHOUT_WARMUP = ("constant", *MEASURED_SCHEDULES)
