"""Rules for actions and their inputs, beyond types. Light: checked before anything is loaded."""

import keyword
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_rules, prompts_file, remote_files, remote_stores, source_run
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.checks import catalog as catalogue_checks
from peftrun.checks import export as export_checks
from peftrun.checks import serving as serve_checks
from peftrun.checks.methods import list_extra_fields
from peftrun.checks.tasks import check_url
from peftrun.config import paths
from peftrun.config.schema import run as schema
from peftrun.config.schema.method_traits import PLAIN_INITS
from peftrun.errors import PeftrunError

Lines = Iterator[str]
OF_ADAPTER = ("reload", "merge", "unmerge", "inspect")  # actions that need an adapter
ONE_ADAPTER = ("merge", "unmerge")  # actions that load only the active adapter
ALL_ADAPTERS = ("reload", "save", "combine", "evaluate", "generate")  # actions that load every adapter
PLAIN_LORA_VALUES: dict[str, tuple[Any, ...]] = {  # key of `lora` → values that an extracted adapter may have
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "init_lora_weights": PLAIN_INITS,
    "target_parameters": (None,),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "velora_config": (None,),
    "use_bdlora": (None,),
    "loraplus_lr_ratio": (None,),
    "lora_fa": (False,),
}


def check_action(action: Any, adapter: dict[str, str], lora: Any) -> Lines:
    """The action has the inputs that it needs, and none that it would ignore."""
    name = action.name
    if name in OF_ADAPTER and not adapter:
        yield f"adapter is not set; action={name} needs one: type adapter=RUN_FOLDER"
    if name == "combine" and len(adapter) < 2:
        yield "adapter: action=combine combines several adapters; type 'adapter={a: PATH, b: PATH}'"
    if name == "extract" and adapter:
        yield "adapter: action=extract makes an adapter from action.finetuned_model and would ignore this one; omit adapter"
    if name == "diff" and len(adapter) != 2:
        yield "adapter: action=diff compares two adapters; type 'adapter={a: PATH, b: PATH}'"
    if name == "save" and not adapter and isinstance(lora, schema.NoAdapter):
        yield "lora=none: action=save without adapter saves a new adapter, so it needs a method; type lora=lora"
    if name == "save" and adapter:
        for unknown in set(action.adapters or ()) - set(adapter):
            yield f"action.adapters: {unknown!r} is not loaded; loaded: {', '.join(adapter)}"


def check_loadable(action: Any, adapter: dict[str, str], adapters: dict[str, AdapterRef], active: str | None) -> Lines:
    """Adapters can be loaded as they were saved, and none changes the base model that the others are loaded on."""
    if action.name not in (*ONE_ADAPTER, *ALL_ADAPTERS, "export"):
        return
    first = active if active in adapter else next(iter(adapter), "")
    # Adapters that are never loaded together need not be compatible.
    chosen = [name for name in adapters if name == first or action.name not in ONE_ADAPTER]
    configs = {name: adapters[name].config for name in chosen}
    reasons = {name: reason for name, config in configs.items() if (reason := adapter_rules.why_not_loadable(config))}
    yield from (f"{adapters[name].option}: {reason}" for name, reason in reasons.items())
    if action.name == "unmerge" and not reasons and first in configs:
        option, config = adapters[first].option, configs[first]
        if change := adapter_rules.describe_base_change(config):
            yield f"{option}: {change}, which unmerge cannot undo; keep the base model it was made for"
        elif reason := adapter_rules.why_weights_needed(config):
            yield f"{option}: {reason}, so unmerge cannot subtract it from a model; keep the base model it was made for"
    if action.name in ALL_ADAPTERS and not reasons:
        yield from adapter_rules.check_loadable_together(configs)


def check_generate(action: Any, adapter: dict[str, str], adapters: dict[str, AdapterRef]) -> Lines:
    """Prompts come from one place and can be read, and every adapter writes text."""
    if action.name != "generate":
        return
    if action.prompt is not None and action.prompts_file is not None:
        yield "action.prompt: cannot be combined with action.prompts_file; omit one"
    if action.prompt is not None and not action.prompt.strip():
        yield "action.prompt=: is empty; type action.prompt='Hello', or omit it for an interactive chat"
    if action.prompts_file is not None:
        yield from _check_prompts_file(action.prompts_file, adapter)
    if BASE_ADAPTER_NAME in adapter:
        yield f"adapter.{BASE_ADAPTER_NAME}: is the name of the base model without any adapter; give this adapter another name"
    for name, ref in adapters.items():
        if serve_checks.is_classifier(ref.config):
            yield f"adapter.{name}={ref.path}: {serve_checks.NO_ANSWERS.format('generate')}"


def _check_prompts_file(path: str, adapter: dict[str, str]) -> Lines:
    option = f"action.prompts_file={path}"
    if remote_files.is_url(path):  # read when the action runs: a check needs no network
        yield from check_url(option, path)
    elif not Path(path).expanduser().is_file():
        yield f"{option}: {paths.no_file(path)}; name a text file, one prompt a line"
    else:
        try:
            prompts_file.read_prompts(path, adapter)
        except PeftrunError as error:
            yield from error.lines


def check_adapter_column(task: schema.TaskSpec, action: Any, adapter: dict[str, str]) -> Lines:
    """task.data.adapter_column, which routes each row to an adapter, is used only by action=evaluate of a language model."""
    if task.lm_eval is not None and len(adapter) > 1 and BASE_ADAPTER_NAME in adapter:
        yield f"adapter.{BASE_ADAPTER_NAME}: is the name of the base model without any adapter; give this adapter another name"
    if task.data.adapter_column is None:
        return
    if action.name == "explain":
        return
    if action.name != "evaluate" or task.type != "causal_lm" or not adapter:
        yield (
            f"task.data.adapter_column={task.data.adapter_column}: is read by action=evaluate of a language model with adapters; "
            "type action=evaluate 'adapter={a: PATH, b: PATH}', or task.data.adapter_column=null"
        )
    if BASE_ADAPTER_NAME in adapter:
        yield f"adapter.{BASE_ADAPTER_NAME}: is the name of the base model without any adapter; give this adapter another name"


def check_combine(action: Any, adapter: dict[str, str]) -> Lines:
    """Keys of action=combine that contradict each other, or that its combination type would ignore."""
    if action.name != "combine":
        return
    combination = action.combination_type
    if combination.startswith(("ties", "dare", "magnitude")) == (action.density is None):
        yield (
            f"action.density: action.combination_type={combination} needs the share of weights to keep; type action.density=0.5"
            if action.density is None
            else f"action.density={action.density}: action.combination_type={combination} keeps every weight; omit action.density"
        )
    if action.rank is not None and not combination.endswith("svd"):
        yield f"action.rank={action.rank}: only an svd chooses the rank, not action.combination_type={combination}; omit action.rank"
    # A misspelled name would otherwise give that adapter the default weight 1.
    for name in sorted((action.weights or {}).keys() ^ adapter.keys()) if action.weights else ():
        yield f"action.weights: must name exactly the adapters ({', '.join(adapter)}), and {name} is in only one of the two"
    if "default" in adapter:  # PEFT saves the adapter `default` at the top of the folder, where others can load it
        yield "adapter.default: is the name of the result; give this adapter another: type 'adapter={a: PATH, b: PATH}'"


def check_extract(action: Any, lora: Any) -> Lines:
    """The tuned model, and the shape of the adapter."""
    if action.name != "extract":
        return
    if not isinstance(lora, schema.LoraSpec):
        yield f"lora={lora.method}: action=extract needs rank and target modules of a LoRA; type lora=lora lora.r=32"
    elif unsupported := [
        *(key for key, values in PLAIN_LORA_VALUES.items() if getattr(lora, key) not in values),
        *list_extra_fields(lora),
    ]:
        key = unsupported[0]
        yield f"lora.{key}: action=extract makes a plain low-rank adapter; type lora=lora or lora=rslora, and leave lora.{key} at its default"
    folder = Path(action.finetuned_model).expanduser()
    if not folder.is_dir():
        yield f"action.finetuned_model={action.finetuned_model}: there is no such folder; name the folder of a fine-tuned model"
    elif not any(folder.glob("*.safetensors")):
        yield f"action.finetuned_model={action.finetuned_model}: has no .safetensors file (pickles are refused); convert its weights to safetensors"


def check_explain(action: Any) -> Lines:
    """The run folders and the action that are explained exist."""
    if action.name != "explain":
        return
    for key in ("run", "compare_with"):
        folder = getattr(action, key)
        if folder is not None and not (Path(folder).expanduser() / CONFIG).is_file():
            yield f"action.{key}={folder}: is not a run folder (no {CONFIG}); name one, such as outputs/train/RUN"
    if action.compare_with is not None and action.run is None:
        yield f"action.run is not set; action.compare_with={action.compare_with} is compared with it: type action.run=RUN_FOLDER"
    names = paths.list_group_options("action")
    if action.for_action not in names:
        yield f"action.for_action={action.for_action}: is not an action; actions: {', '.join(names)}; type action.for_action=train"


def check_output(action: Any) -> Lines:
    """Nothing is overwritten, and the run to resume is a run folder."""
    output_dir = getattr(action, "output_dir", None)
    if output_dir is not None and Path(output_dir).expanduser().exists():
        yield f"action.output_dir={output_dir}: exists already and is never overwritten; name a folder that does not exist"
    resume = getattr(action, "resume", None)
    if resume not in (None, "auto") and remote_stores.is_remote_run(resume):
        # Whether there is a run is not checked here: that would need the network.
        yield from check_url(f"action.resume={resume}", resume) if remote_files.is_url(resume) else ()
    elif resume not in (None, "auto") and not all(
        (Path(resume).expanduser() / name).is_file() for name in (RECORD, CONFIG)
    ):
        yield f"action.resume={resume}: is not a run folder (no {RECORD}); name one below outputs/train, or type action.resume=auto"


def check_export(action: Any, adapter: dict[str, str], adapters: dict[str, AdapterRef]) -> Lines:
    """The rules of `checks.export`."""
    if action.name == "export":
        yield from export_checks.check_export(action, adapter, adapters)


def check_catalog(action: Any) -> Lines:
    """The rules of `checks.catalog`."""
    if action.name in ("list", "compare", "browse"):
        yield from catalogue_checks.check_catalog(action)


def check_replay(action: Any) -> Lines:
    """The run to replay exists, has completed, and has results to compare."""
    if action.name == "replay":
        yield from source_run.check_source_run(action)


def check_import(action: Any) -> Lines:
    """action=import has a file to convert, and overwrites none."""
    if action.name != "import":
        return
    if action.source is None:
        yield "action.source is not set; action=import converts a file: type from=axolotl.yaml"
    elif not Path(action.source).expanduser().exists():
        yield f"action.source={action.source}: there is no such file; name a config of another tool, or a folder with an adapter_config.json"
    if action.output is not None and Path(action.output).expanduser().exists():
        yield f"action.output={action.output}: exists already and is never overwritten; name another file"


def check_template(action: Any) -> Lines:
    """The new package has a path that does not exist, whose last part Python can import."""
    if action.name != "template":
        return
    if action.path is None:
        yield "action.path is not set; action=template creates a folder: type path=our_templates"
        return
    name, key = Path(action.path).expanduser().name, f"action.path={action.path}"
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        suggestion = re.sub(r"\W+", "_", name.lower()).strip("_")
        if not suggestion.isidentifier() or keyword.iskeyword(suggestion):  # starts with a digit, or is empty
            suggestion = f"our_{suggestion}".rstrip("_")
        yield f"{key}: its last part names a Python package: lower-case letters, digits and _; type path={suggestion}"
    elif name == "peftrun" or name in sys.stdlib_module_names:  # installing it would shadow that package
        yield f"{key}: {name} is the name of another package; type path=our_{name}"
    if Path(action.path).expanduser().exists():
        yield f"{key}: exists already and is never overwritten; name a folder that does not exist"
