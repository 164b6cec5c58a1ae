"""Rules for `trainer.arguments`, `trainer.optim` and the schedule: what the libraries would refuse late, or ignore. Light."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from peftrun.artifacts import base_files
from peftrun.checks.unknown_keys import find_close_match, is_secret, quote_for_shell
from peftrun.checks.validation import explain_type_errors
from peftrun.config.schema import trainer_fields
from peftrun.config.schema.library_fields import build_mapping_type, read_fields
from peftrun.config.schema.optimizers import MEASURED_SCHEDULES, OPTIMIZERS, SCHEDULE_SETTINGS
from peftrun.formatting import format_value
from peftrun.system.packages import explain_not_installed

Lines = Iterator[str]
NEEDS: dict[str, tuple[str, Callable[[Any], bool], str]] = {  # field → (key, whether its value has it used, what to type)
    **dict.fromkeys(("activation_checkpointing_kwargs",), ("trainer.gradient_checkpointing", bool, "true")),
    **dict.fromkeys(("torch_compile_backend", "torch_compile_mode"), ("trainer.torch_compile", bool, "true")),
    **dict.fromkeys(("liger_kernel_config",), ("trainer.use_liger_kernel", bool, "true")),
    **dict.fromkeys(("packing_strategy", "eval_packing"), ("trainer.packing", bool, "true")),
    **dict.fromkeys(("eval_delay", "eval_on_start"), ("trainer.eval_strategy", lambda value: value != "no", "steps")),
    **dict.fromkeys(
        (
            "dataloader_in_order", "dataloader_multiprocessing_context", "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
        ),
        ("trainer.dataloader_num_workers", bool, "2"),
    ),
    **dict.fromkeys(
        (
            "average_tokens_across_devices", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters",
            "ddp_static_graph",
        ),
        ("device.strategy", lambda value: value == "ddp", "ddp"),
    ),
}  # fmt: skip


def check_arguments(trainer: Any, task: Any, device: Any) -> Lines:
    """Each argument is a field of the task's training config, of its type, that nothing else sets and something reads."""
    arguments = trainer.arguments
    if not arguments:
        return
    config = trainer_fields.get_training_config(task.type, getattr(task.objective, "name", None))
    accepted = trainer_fields.get_accepted_arguments(config)
    types = {name: accepted[name] for name in arguments if name in accepted}
    yield from (_explain_refused(config, name, value) for name, value in arguments.items() if name not in types)
    mapping = build_mapping_type("Trainer", {"arguments": build_mapping_type("Arguments", types)})
    yield from explain_type_errors("trainer", {"arguments": {name: arguments[name] for name in types}}, mapping)
    groups = {"trainer": trainer, "device": device}
    for name in types.keys() & NEEDS.keys():
        key, is_used, instead = NEEDS[name]
        group, _, field = key.partition(".")
        value = getattr(groups[group], field)
        if not is_used(value):
            yield (
                f"trainer.arguments.{name}={format_value(arguments[name])}: has no effect with {key}={format_value(value)}; "
                f"type {key}={instead}"
            )


def _explain_refused(config: trainer_fields.Config, name: str, value: Any) -> str:
    """Why an argument is not taken: it has a key of its own, cannot be set, is of another objective, or does not exist."""
    key, fields = f"trainer.arguments.{name}", read_fields(*config)
    shown = "…" if is_secret(name, value) else format_value(value)
    if name in fields:
        own = trainer_fields.find_own_key(config, name)
        if own:
            return f"{key}={shown}: has a key of its own; type {own.replace('VALUE', shown)}"
        reason = trainer_fields.explain_not_offered(name)
        return f"{key}={shown}: is a field of {config[1]} that peftrun does not support: {reason}; omit it"
    owners = trainer_fields.list_configs_with(name)
    if owners:
        return f"{key}={shown}: is a field of {', '.join(owners)}, and this task is trained by {config[1]}; omit it"
    nearest = find_close_match(name, fields)
    if nearest is None:
        return f"{key}={shown}: {config[1]} has no such field; omit it"
    own = trainer_fields.find_own_key(config, nearest) or f"trainer.arguments.{nearest}=VALUE"
    return f"{key}={shown}: {config[1]} has no such field; did you mean {nearest}? type {quote_for_shell(own.replace('VALUE', shown))}"


def check_optimizer(trainer: Any, device: Any) -> Lines:
    """The optimizer's package is installed, it runs on the device, and it gets the arguments that it needs and no others."""
    key, traits, arguments = f"trainer.optim={trainer.optim}", OPTIMIZERS[trainer.optim], trainer.arguments or {}
    if traits.package and find_spec(traits.package) is None:
        yield explain_not_installed(f"{key} needs package", traits.package)
    if traits.gpu and not base_files.uses_gpu(device):
        yield f"{key}: is for a GPU; type trainer.optim={trainer.optim.replace('_8bit', '').replace('ada', '')}"
    yield from _check_optimizer_settings(trainer.optim, arguments.get("optim_args"))
    targets = arguments.get("optim_target_modules")
    if traits.low_rank and not targets:
        yield f"trainer.arguments.optim_target_modules is not set; {key} needs it: type trainer.arguments.optim_target_modules=all-linear"
    if targets and not traits.low_rank:
        yield f"trainer.arguments.optim_target_modules={format_value(targets)}: has no effect with {key}; type trainer.optim=galore_adamw"
    if traits.layerwise and trainer.gradient_accumulation_steps > 1:
        yield (
            f"trainer.gradient_accumulation_steps={trainer.gradient_accumulation_steps}: {key} updates weights in each backward pass; "
            "type trainer.gradient_accumulation_steps=1"
        )


def _check_optimizer_settings(optim: str, text: Any) -> Lines:
    """transformers reads the settings as `NAME=VALUE,NAME=VALUE`, and ignores names that the optimizer does not have."""
    if not isinstance(text, str):
        return
    key, names = f"trainer.arguments.optim_args={text}", OPTIMIZERS[optim].settings
    for setting in text.replace(" ", "").split(","):
        name, sign, _ = setting.partition("=")
        if not names:
            yield f"{key}: trainer.optim={optim} has no settings; omit it"
            return
        if not sign or name not in names:
            yield f"{key}: {name} is not a setting of trainer.optim={optim} (it has {', '.join(names)}); type '{names[0]}=VALUE,…'"


def check_schedule(trainer: Any) -> Lines:
    """Each schedule has its own settings, which transformers would check only after the model is loaded."""
    schedule, settings = trainer.lr_scheduler_type, trainer.lr_scheduler_kwargs or {}
    key, accepted = f"trainer.lr_scheduler_type={schedule}", SCHEDULE_SETTINGS.get(schedule, ())
    for name in settings:
        if name not in accepted:
            yield (
                f"trainer.lr_scheduler_kwargs.{name}={format_value(settings[name])}: is not a setting of {key} "
                f"(it has {', '.join(accepted) or 'none'}); type trainer.lr_scheduler_kwargs=null"
            )
    if schedule.endswith("with_min_lr") and ("min_lr" in settings) == ("min_lr_rate" in settings):
        yield (
            f"trainer.lr_scheduler_kwargs: {key} needs either min_lr_rate, a share of the "
            "learning rate, or min_lr; type 'trainer.lr_scheduler_kwargs={min_lr_rate: 0.1}'"
        )
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in settings:
        yield f"trainer.lr_scheduler_kwargs: {key} needs num_decay_steps; type 'trainer.lr_scheduler_kwargs={{num_decay_steps: 10}}'"
    if schedule in MEASURED_SCHEDULES and trainer.eval_strategy == "no":
        yield f"{key}: follows the validation loss; type trainer.eval_strategy=steps task.data.num_validation_rows=50"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("trainer", "task", "device"), check_arguments),
    (("trainer", "device"), check_optimizer),
    (("trainer",), check_schedule),
]
