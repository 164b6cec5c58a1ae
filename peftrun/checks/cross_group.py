"""Rules between keys, and rules that need the disk: contradictions, and files or packages that are missing.

Each rule names the groups that it reads and runs if those are well typed, so that one report shows all problems.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder, base_location, classifier_head
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.checks import actions as action_checks
from peftrun.checks import arguments as argument_checks
from peftrun.checks import base_tokens as token_checks
from peftrun.checks import device as device_checks
from peftrun.checks import function_files as function_checks
from peftrun.checks import methods as method_checks
from peftrun.checks import metric_names, peer_keys
from peftrun.checks import model_arguments as model_argument_checks
from peftrun.checks import parent as parent_checks
from peftrun.checks import preferences as preference_checks
from peftrun.checks import serving as serve_checks
from peftrun.checks import stack as stack_checks
from peftrun.checks import tasks as task_checks
from peftrun.checks import trackers as tracker_checks
from peftrun.checks import uploads as upload_checks
from peftrun.checks.tasks import MODELLESS
from peftrun.config.schema import run as schema
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.quantization_formats import FORMATS
from peftrun.errors import ConfigError, PeftrunError
from peftrun.formatting import format_value
from peftrun.system.packages import explain_not_installed, find_package_dir

Lines = Iterator[str]
TASK_ADVICE = {
    "causal_lm": "type task=sms_spam, or the task it was trained on",
    "seq_cls": "type model=minilm task=spanish_sentiment, or the task it was trained on",
    "token_cls": "type model=minilm task=ner, or the task it was trained on",
}


def check_groups(parts: dict[str, Any]) -> list[str]:
    """One line for each rule that the well-typed groups in `parts` break."""
    # Overrides of action=replay change a few keys of a recorded config. They are checked once merged into it, in
    # `results.replay`; checked against today's defaults they could seem to contradict each other.
    is_replay = getattr(parts.get("action"), "name", None) == "replay"
    problems: list[str] = []
    if "adapter" in parts and not is_replay:
        parts = parts | _resolve_adapters(parts["adapter"])
    for groups, rule in RULES:
        if not parts.keys() >= set(groups) or (is_replay and groups != ("action",)):
            continue
        try:
            problems += rule(*(parts[group] for group in groups))
        except OSError as error:  # a path that the system refuses to look up, such as one that is too long
            problems.append(f"{str(error.filename)[:80]}…: is not a valid path ({error.strerror}); name another")
    return problems


def as_training(spec: schema.RunSpec, action: TrainAction) -> schema.RunSpec:
    """The same run with action=train. Raises: ConfigError: training would refuse it, one line per rule."""
    training_spec = dataclasses.replace(spec, action=action)
    groups = {field.name: getattr(training_spec, field.name) for field in dataclasses.fields(training_spec)}
    problems = check_groups(groups)
    if problems:
        raise ConfigError(*problems)
    return training_spec


def _check_trainer(trainer: schema.TrainerSpec) -> Lines:
    if not math.isfinite(trainer.learning_rate):  # inf passes the range > 0 of the schema
        yield f"trainer.learning_rate={trainer.learning_rate}: must be a finite number; type trainer.learning_rate=0.0002"
    if 0 < trainer.max_steps <= trainer.warmup_steps:
        yield (
            f"trainer.warmup_steps={trainer.warmup_steps:g}: must be below trainer.max_steps={trainer.max_steps}; "
            f"type trainer.warmup_steps={trainer.max_steps // 10}"
        )
    yield from _check_validation(trainer)
    if trainer.packing and trainer.padding_free:
        yield "trainer.padding_free=true: rows packed by trainer.packing=true are not padded anyway; type trainer.padding_free=false"
    if trainer.packing and trainer.train_sampling_strategy == "group_by_length":
        yield (
            "trainer.packing=true: packed rows have the same length, so trainer.train_sampling_strategy=group_by_length "
            "would have no effect; type trainer.train_sampling_strategy=random"
        )


def _check_validation(trainer: schema.TrainerSpec) -> Lines:
    for key, value in {
        "load_best_model_at_end": trainer.load_best_model_at_end,
        "early_stopping_patience": trainer.early_stopping_patience,
    }.items():
        if value and trainer.eval_strategy == "no":
            yield f"trainer.{key}={format_value(value)}: needs the validation loss; type trainer.eval_strategy=steps task.data.num_validation_rows=50"
        # transformers restores the best checkpoint, so each evaluation needs a checkpoint of the same step.
        if value and trainer.save_strategy != trainer.eval_strategy != "no":
            yield (
                f"trainer.save_strategy={trainer.save_strategy}: trainer.{key} needs a checkpoint at each evaluation; "
                f"type trainer.save_strategy={trainer.eval_strategy}"
            )


def _check_model(model: schema.ModelSpec, action: Any) -> Lines:
    if action.name in MODELLESS:
        return
    if model.package is not None:
        folder = find_package_dir(model.package)
        if folder is None:
            yield explain_not_installed("model.package", model.package)
        elif not (folder / model.name_or_path).exists():
            yield f"model.name_or_path={model.name_or_path}: package {model.package} has no such model; type model=pretrained model.name_or_path={model.name_or_path}"
    else:
        yield from _check_model_folder(model.name_or_path)
    chosen = FORMATS.get(model.quantization or "")
    if chosen and find_spec(chosen.package) is None:
        yield explain_not_installed(f"model.quantization={model.quantization} needs package", chosen.package)
    # transformers reads GGUF files by the package gguf.
    if model.name_or_path.endswith(".gguf") and find_spec("gguf") is None:
        yield explain_not_installed("model.name_or_path needs package", "gguf")


def _check_model_folder(name: str) -> Lines:
    folder = Path(name).expanduser()
    # `ORG/NAME` may be a folder or a Hub id; only an explicit path must exist.
    if name.startswith((".", "/", "~")) and not folder.exists():
        yield f"model.name_or_path={name}: there is no such folder; type a folder or a Hub id"
    if not folder.is_dir():
        return
    problem = base_location.find_stray_adapter(folder, name)
    if problem:
        yield problem
    elif not (folder / "config.json").is_file():
        yield f"model.name_or_path={name}: has no config.json, so it is not a model folder; name another"
    elif not any(folder.glob("*.safetensors")):
        yield (
            f"model.name_or_path={name}: has no .safetensors file (pickles, which can run code when read, are refused); "
            "convert its weights to safetensors"
        )


def _resolve_adapters(adapter: dict[str, str]) -> dict[str, Any]:
    """Two more parts, both by name: `adapters` that were found, and in `adapter_errors` why others were not.

    An adapter on the Hub that is not downloaded yet is in neither: the rules are checked again once it is.
    """
    adapters: dict[str, AdapterRef] = {}
    errors: dict[str, PeftrunError | OSError] = {}
    for name, path in adapter.items():
        try:
            adapter_folder.check_adapter_name(name)
            if not adapter_folder.awaits_download(path, name):
                adapters[name] = adapter_folder.resolve_adapter(path, name)
        except (PeftrunError, OSError) as error:
            errors[name] = error
    return {"adapters": adapters, "adapter_errors": errors}


def _check_adapters(adapter: dict[str, str], errors: dict[str, PeftrunError | OSError], active: str | None) -> Lines:
    for name, error in errors.items():
        path = adapter[name]
        if isinstance(error, OSError):
            raise error
        # In other tools `adapter: lora` chooses the method; here it is a folder to load.
        method = None if Path(path).expanduser().is_dir() else peer_keys.translate_adapter(path)
        if method:
            option = adapter_folder.format_adapter_option(path, name)
            yield f"{option}: is not an adapter to load, but a method; type {method}"
        else:
            yield from error.lines
    if active is not None and active not in adapter:
        yield f"active_adapter={active}: there is no such adapter; adapters: {', '.join(adapter) or 'none'}"


def _check_same_kind(
    task: schema.TaskSpec, adapter: dict[str, str], adapters: dict[str, AdapterRef], active: str | None, action: Any
) -> Lines:
    """An evaluated adapter must have the head that the task needs: none, or a classifier with the task's labels."""
    name = active if active in adapter else next(iter(adapter), None)
    if name not in adapters or not (
        action.name in ("evaluate", "train") or (action.name == "reload" and action.evaluate)
    ):
        return
    try:
        head = classifier_head.read_adapter_head(adapters[name])
    except PeftrunError:
        return  # reported when it is loaded
    head_kind, required_head = head.kind if head else "causal_lm", classifier_head.get_task_head(task)
    if head_kind != (required_head.kind if required_head else "causal_lm"):
        yield f"adapter.{name}={adapters[name].path}: is a {head_kind} adapter, and task.type={task.type}; {TASK_ADVICE[head_kind]}"
    elif head and required_head and head.labels != required_head.labels:
        labels = ", ".join(required_head.labels)
        yield f"adapter.{name}={adapters[name].path}: has the labels {', '.join(head.labels)}, the task {labels}; choose the task it was trained on"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("trainer",), _check_trainer),
    *argument_checks.RULES,
    *device_checks.RULES,
    *task_checks.RULES,
    *preference_checks.RULES,
    *function_checks.RULES,
    *metric_names.RULES,
    *tracker_checks.RULES,
    *upload_checks.RULES,
    (("lora",), method_checks.check_module_patterns),
    (("lora",), method_checks.check_layers),
    (("lora",), method_checks.check_converted_init),
    (("lora", "trainer"), method_checks.check_optimizer),
    (("lora", "action"), method_checks.check_calibration),
    (("lora", "task"), method_checks.check_penalty),
    (("lora", "trainer", "action"), method_checks.check_adalora),
    (("lora", "trainer"), method_checks.check_packing),
    (("lora", "model", "action"), method_checks.check_quantization),
    (("task", "adapter", "adapters", "active_adapter", "action"), _check_same_kind),
    (("model", "action"), _check_model),
    *token_checks.RULES,
    *model_argument_checks.RULES,
    (("adapter", "adapter_errors", "active_adapter"), _check_adapters),
    (("action", "adapter", "lora"), action_checks.check_action),
    (("action", "lora", "adapter", "adapters"), parent_checks.check_parent),
    (("action", "lora", "adapter", "adapters"), stack_checks.check_stack),
    (("action", "adapter", "adapters", "active_adapter"), action_checks.check_loadable),
    (("action", "adapter", "adapters"), action_checks.check_generate),
    (("action", "adapter", "adapters"), serve_checks.check_serve),
    (("task", "action", "adapter"), action_checks.check_adapter_column),
    (("action", "adapter"), action_checks.check_combine),
    (("action", "lora"), action_checks.check_extract),
    (("action",), action_checks.check_explain),
    (("action",), action_checks.check_output),
    (("action",), action_checks.check_template),
    (("action",), action_checks.check_import),
    (("action",), action_checks.check_replay),
    (("action",), action_checks.check_catalog),
    (("action", "adapter", "adapters"), action_checks.check_export),
]
