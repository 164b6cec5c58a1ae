"""Rules that look at more than one value, or at the disk: contradictions, and things that are not there.

Each rule names the groups it looks at and runs when those are well typed, so that one report shows everything.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder, classifier_head, hub_files
from peftrun.checks import actions as action_checks
from peftrun.checks import device as device_checks
from peftrun.checks import methods as method_checks
from peftrun.checks import peer_keys
from peftrun.checks import preferences as preference_checks
from peftrun.checks import serving as serve_checks
from peftrun.checks import tasks as task_checks
from peftrun.checks import trackers as tracker_checks
from peftrun.checks.tasks import MODELLESS
from peftrun.config.schema import run as schema
from peftrun.config.schema.actions import TrainAction
from peftrun.errors import ConfigError, PeftrunError
from peftrun.system.packages import explain_not_installed, find_package_dir

Lines = Iterator[str]
TASK_ADVICE = {
    "causal_lm": "type task=sms_spam, or the task it learned",
    "seq_cls": "type model=minilm task=spanish_sentiment, or the task it learned",
    "token_cls": "type model=minilm task=ner, or the task it learned",
}

SCHEDULER_SETTINGS = {  # the settings that a schedule has of its own
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr_rate", "min_lr", "num_cycles"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
}


def check_groups(parts: dict[str, Any]) -> list[str]:
    """One line for each rule that the well-typed groups in `parts` break."""
    # What is typed beside action=replay changes a few keys of a record, and is checked in their company there.
    alone = getattr(parts.get("action"), "name", None) == "replay"
    return [
        line
        for groups, rule in RULES
        if parts.keys() >= set(groups) and (not alone or groups == ("action",))
        for line in _run_rule(rule, *(parts[group] for group in groups))
    ]


def as_training(spec: schema.RunSpec, action: TrainAction) -> schema.RunSpec:
    """The same run with action=train. Raises: ConfigError: training would refuse it; one line a rule."""
    wanted = dataclasses.replace(spec, action=action)
    problems = check_groups({field.name: getattr(wanted, field.name) for field in dataclasses.fields(wanted)})
    if problems:
        raise ConfigError(*problems)
    return wanted


def _run_rule(rule: Callable[..., Lines], *groups: Any) -> list[str]:
    try:
        return list(rule(*groups))
    except OSError as error:  # a path that the system does not even look for, such as one that is too long
        return [f"{str(error.filename)[:80]}…: is no path ({error.strerror}); name another"]


def _check_trainer(trainer: schema.TrainerSpec) -> Lines:
    if not math.isfinite(trainer.learning_rate):
        yield f"trainer.learning_rate={trainer.learning_rate}: must be a finite number; type trainer.learning_rate=0.0002"
    if 0 < trainer.max_steps <= trainer.warmup_steps:
        yield (
            f"trainer.warmup_steps={trainer.warmup_steps:g}: must be below trainer.max_steps={trainer.max_steps}; "
            f"type trainer.warmup_steps={trainer.max_steps // 10}"
        )
    yield from _check_lr_scheduler(trainer)
    yield from _check_validation(trainer)
    if trainer.packing and trainer.padding_free:
        yield "trainer.padding_free=true: rows packed by trainer.packing=true are not padded either; type trainer.padding_free=false"
    if trainer.packing and trainer.train_sampling_strategy == "group_by_length":
        yield (
            "trainer.packing=true: packed rows have one length, so trainer.train_sampling_strategy=group_by_length "
            "would do nothing; type trainer.train_sampling_strategy=random"
        )


def _check_lr_scheduler(trainer: schema.TrainerSpec) -> Lines:
    """Each schedule has keys of its own, which transformers would look at after the model is loaded."""
    kind, given = trainer.lr_scheduler_type, trainer.lr_scheduler_kwargs or {}
    known = SCHEDULER_SETTINGS.get(kind, ())
    for name in given:
        if name not in known:
            yield (
                f"trainer.lr_scheduler_kwargs.{name}={given[name]:g}: is no setting of trainer.lr_scheduler_type={kind} "
                f"(it has {', '.join(known) or 'none'}); type trainer.lr_scheduler_kwargs=null"
            )
    if kind == "cosine_with_min_lr" and ("min_lr" in given) == ("min_lr_rate" in given):
        yield (
            "trainer.lr_scheduler_kwargs: trainer.lr_scheduler_type=cosine_with_min_lr needs either min_lr_rate, a share of the "
            "learning rate, or min_lr; type 'trainer.lr_scheduler_kwargs={min_lr_rate: 0.1}'"
        )


def _check_validation(trainer: schema.TrainerSpec) -> Lines:
    for key, value in {
        "load_best_model_at_end": trainer.load_best_model_at_end,
        "early_stopping_patience": trainer.early_stopping_patience,
    }.items():
        if value and trainer.eval_strategy == "no":
            yield f"trainer.{key}={str(value).lower()}: goes by the validation loss; type trainer.eval_strategy=steps task.data.validation_rows=50"
        if value and trainer.save_strategy != trainer.eval_strategy != "no":
            yield (
                f"trainer.save_strategy={trainer.save_strategy}: trainer.{key} goes back to a checkpoint of each measurement; "
                f"type trainer.save_strategy={trainer.eval_strategy}"
            )
    if trainer.optim.endswith("bit") and find_spec("bitsandbytes") is None:
        yield explain_not_installed(f"trainer.optim={trainer.optim} needs package", "bitsandbytes")
    if trainer.use_liger_kernel and find_spec("liger_kernel") is None:
        yield explain_not_installed("trainer.use_liger_kernel=true needs package", "liger_kernel")


def _check_model(model: schema.ModelSpec, action: Any) -> Lines:
    if action.name in MODELLESS:
        return
    if model.package is not None:
        folder = find_package_dir(model.package)
        if folder is None:
            yield explain_not_installed("model.package", model.package)
        elif not (folder / model.name_or_path).exists():
            yield f"model.name_or_path={model.name_or_path}: package {model.package} holds no such model; type model=pretrained model.name_or_path={model.name_or_path}"
    else:
        yield from _check_model_folder(model.name_or_path)
    needed = {None: None, "torchao_int8": "torchao"}.get(model.quantization, "bitsandbytes")
    if needed and find_spec(needed) is None:
        yield explain_not_installed(f"model.quantization={model.quantization} needs package", needed)
    if model.name_or_path.endswith(".gguf") and find_spec("gguf") is None:
        yield explain_not_installed("model.name_or_path needs package", "gguf")


def _check_model_folder(name: str) -> Lines:
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.exists():
        yield f"model.name_or_path={name}: there is no such folder; type a folder or a Hub id"
    if not folder.is_dir():
        return
    stray = hub_files.find_stray_adapter(folder, name)
    if stray:
        yield stray
    elif not (folder / "config.json").is_file():
        yield f"model.name_or_path={name}: holds no config.json, so it is no model folder; name another"
    elif not any(folder.glob("*.safetensors")):
        yield (
            f"model.name_or_path={name}: holds no .safetensors file (pickles, which can run code when read, are refused); "
            "convert its weights to safetensors"
        )


def _check_adapters(adapter: dict[str, str], active: str | None) -> Lines:
    for name, path in adapter.items():
        try:
            adapter_folder.check_adapter_name(name)
            adapter_folder.resolve_adapter_dir(path, name)
        except PeftrunError as error:
            method = None if Path(path).expanduser().is_dir() else peer_keys.adapter(path)
            key = adapter_folder.format_adapter_option(path, name)
            yield from (
                [f"{key}: is no adapter that could be loaded, but a method; type {method}"] if method else error.lines
            )
    if active is not None and active not in adapter:
        yield f"active={active}: no such adapter was given; adapters: {', '.join(adapter) or 'none'}"


def _check_same_kind(task: schema.TaskSpec, adapter: dict[str, str], active: str | None, action: Any) -> Lines:
    """What is measured by a task must answer as the task asks."""
    name = active if active in adapter else next(iter(adapter), None)
    if name is None or not (action.name == "evaluate" or (action.name == "reload" and action.evaluate)):
        return
    try:
        head = classifier_head.read_adapter_head(adapter[name], name)
    except PeftrunError:
        return  # told by the rule for adapters
    kind, wanted = head.kind if head else "causal_lm", classifier_head.get_task_head(task)
    if kind != (wanted.kind if wanted else "causal_lm"):
        yield f"adapter.{name}={adapter[name]}: is a {kind} adapter, and the task's kind is {task.kind}; {TASK_ADVICE[kind]}"
    elif head and wanted and head.labels != wanted.labels:
        asked = ", ".join(wanted.labels)
        yield f"adapter.{name}={adapter[name]}: answers with {', '.join(head.labels)}, the task with {asked}; choose its task"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("trainer",), _check_trainer),
    *device_checks.RULES,
    *task_checks.RULES,
    *preference_checks.RULES,
    *tracker_checks.RULES,
    (("lora",), method_checks.check_module_patterns),
    (("lora",), method_checks.check_layers),
    (("lora",), method_checks.check_converted_init),
    (("lora", "trainer"), method_checks.check_optimizer),
    (("lora", "action"), method_checks.check_calibration),
    (("lora", "task"), method_checks.check_penalty),
    (("lora", "trainer", "action"), method_checks.check_adalora),
    (("lora", "trainer"), method_checks.check_packing),
    (("lora", "model", "action"), method_checks.check_quantization),
    (("task", "adapter", "active", "action"), _check_same_kind),
    (("model", "action"), _check_model),
    (("adapter", "active"), _check_adapters),
    (("action", "adapter", "lora"), action_checks.check_action),
    (("action", "adapter", "active"), action_checks.check_loadable),
    (("action", "adapter"), action_checks.check_generate),
    (("action", "adapter"), serve_checks.check_serve),
    (("task", "action", "adapter"), action_checks.check_adapter_column),
    (("action", "adapter"), action_checks.check_combine),
    (("action", "lora"), action_checks.check_extract),
    (("action",), action_checks.check_explain),
    (("action",), action_checks.check_output),
    (("action",), action_checks.check_template),
    (("action",), action_checks.check_replay),
    (("action",), action_checks.check_catalog),
    (("action", "adapter"), action_checks.check_export),
]
