"""What must hold of an action and of what it is given, beyond types; light, before anything is loaded."""

import keyword
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder, adapter_rules, prompts_file, source_run
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, CONFIG, RECORD
from peftrun.checks import catalog as catalogue_checks
from peftrun.checks import export as export_checks
from peftrun.checks import peer_keys
from peftrun.checks import serving as serve_checks
from peftrun.checks.methods import list_extra_fields
from peftrun.config import paths
from peftrun.config.schema import run as schema
from peftrun.errors import PeftrunError
from peftrun.io.atomic_files import read_json

Lines = Iterator[str]
ONE_ADAPTER = ("merge", "unmerge")  # actions that load the active adapter alone
ALL_ADAPTERS = ("reload", "save", "combine", "evaluate", "generate")  # and those that load all that are given
PLAIN_LORA_VALUES: dict[str, tuple[Any, ...]] = {  # what an extracted adapter may say
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "target_parameters": (None,),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "velora_config": (None,),
    "use_bdlora": (None,),
    "loraplus_lr_ratio": (None,),
    "lora_fa": (False,),
}


def check_action(action: Any, adapter: dict[str, str], lora: Any) -> Lines:
    """Whether what the action needs is there, and nothing that it would ignore."""
    name = action.name
    if name in ("reload", "merge", "unmerge", "inspect") and not adapter:
        yield f"adapter is not set; action={name} needs one: type adapter=RUN_FOLDER"
    if name == "combine" and len(adapter) < 2:
        yield "adapter: action=combine makes one of several; type 'adapter={a: PATH, b: PATH}'"
    if name == "extract" and adapter:
        yield "adapter: action=extract makes an adapter out of action.tuned and would ignore this one; omit adapter"
    if name == "diff" and len(adapter) != 2:
        yield "adapter: action=diff compares two adapters; type 'adapter={a: PATH, b: PATH}'"
    if name == "train" and adapter and not any(map(peer_keys.adapter, adapter.values())):  # those are told already
        yield "adapter: action=train learns a fresh adapter and would ignore this one; omit adapter"
    if name == "save" and not adapter and isinstance(lora, schema.NoAdapter):
        yield "lora=none: action=save without adapter saves a fresh adapter, so it needs a method; type lora=lora"
    if name == "save" and adapter:
        for unknown in set(action.adapters or ()) - set(adapter):
            yield f"action.adapters: {unknown!r} is not loaded; loaded: {', '.join(adapter)}"


def check_loadable(action: Any, adapter: dict[str, str], active: str | None) -> Lines:
    """Loading makes the models that were saved, and adapters that are loaded together leave each other's base as it is."""
    one = active if active in adapter else next(iter(adapter), "")
    chosen = {one: adapter[one]} if action.name in ONE_ADAPTER and adapter else adapter
    configs = {}
    for name, path in chosen.items() if action.name in (*ONE_ADAPTER, *ALL_ADAPTERS, "export") else ():
        with suppress(PeftrunError):  # told by the rule for adapters
            configs[name] = read_json(adapter_folder.resolve_adapter_dir(path, name) / ADAPTER_CONFIG)
    reasons = {name: reason for name, config in configs.items() if (reason := adapter_rules.why_not_loadable(config))}
    yield from (
        f"{adapter_folder.format_adapter_option(adapter[name], name)}: {reason}" for name, reason in reasons.items()
    )
    if action.name == "unmerge" and not reasons and one in configs:
        yield from _check_undoable(adapter_folder.format_adapter_option(adapter[one], one), configs[one])
    if action.name in ALL_ADAPTERS and not reasons:
        yield from adapter_rules.check_loadable_together(configs)


def _check_undoable(option: str, config: Any) -> Lines:
    change, reason = adapter_rules.describe_base_change(config), adapter_rules.why_weights_needed(config)
    if change:
        yield f"{option}: {change}, which unmerge cannot undo; keep the base it was made for"
    elif reason:
        yield f"{option}: {reason}, and unmerge cannot take it out of a model; keep the base it was made for"


def check_generate(action: Any, adapter: dict[str, str]) -> Lines:
    """Where the prompts come from, and who is to answer them."""
    if action.name != "generate":
        return
    if action.prompt is not None and action.prompts_file is not None:
        yield "action.prompt: cannot stand beside action.prompts_file; omit one"
    if action.prompt is not None and not action.prompt.strip():
        yield "action.prompt=: asks nothing; type action.prompt='Hello', or omit it to be asked for prompts"
    if action.prompts_file is not None and not Path(action.prompts_file).expanduser().is_file():
        yield f"action.prompts_file={action.prompts_file}: {paths.no_file(action.prompts_file)}; name a text file, one prompt a line"
    elif action.prompts_file is not None:
        try:
            prompts_file.read_prompts(action.prompts_file, adapter)
        except PeftrunError as error:
            yield from error.lines
    if BASE_ADAPTER_NAME in adapter:
        yield f"adapter.{BASE_ADAPTER_NAME}: means the base without any adapter; give this adapter another name"
    for name, path in adapter.items():
        with suppress(PeftrunError):  # told by the rule for adapters
            if serve_checks.is_classifier(read_json(adapter_folder.resolve_adapter_dir(path, name) / ADAPTER_CONFIG)):
                yield f"adapter.{name}={path}: {serve_checks.NO_ANSWERS.format('generate')}"


def check_adapter_column(task: schema.TaskSpec, action: Any, adapter: dict[str, str]) -> Lines:
    """A column that names each row's adapter is read where several may answer."""
    if task.lm_eval is not None and len(adapter) > 1 and BASE_ADAPTER_NAME in adapter:
        yield f"adapter.{BASE_ADAPTER_NAME}: means the base without any adapter; give this adapter another name"
    if task.data.adapter_column is None:
        return
    if action.name == "explain":
        return
    if action.name != "evaluate" or task.kind != "causal_lm" or not adapter:
        yield (
            f"task.data.adapter_column={task.data.adapter_column}: is read by action=evaluate of a language model with adapters; "
            "type action=evaluate 'adapter={a: PATH, b: PATH}', or task.data.adapter_column=null"
        )
    if BASE_ADAPTER_NAME in adapter:
        yield f"adapter.{BASE_ADAPTER_NAME}: means the base without any adapter; give this adapter another name"


def check_combine(action: Any, adapter: dict[str, str]) -> Lines:
    """The knobs of action=combine among each other."""
    if action.name != "combine":
        return
    kind = action.combination
    if kind.startswith(("ties", "dare", "magnitude")) == (action.density is None):
        yield (
            f"action.density: action.combination={kind} needs the share of weights to keep; type action.density=0.5"
            if action.density is None
            else f"action.density={action.density}: action.combination={kind} keeps every weight; omit action.density"
        )
    if action.rank is not None and not kind.endswith("svd"):
        yield f"action.rank={action.rank}: only an svd chooses a rank, not action.combination={kind}; omit action.rank"
    for name in sorted((action.weights or {}).keys() ^ adapter.keys()) if action.weights else ():
        yield f"action.weights: must name the adapters given ({', '.join(adapter)}), and {name} is on one side only"
    if "default" in adapter:
        yield "adapter.default: is the name of the result; give this adapter another: type 'adapter={a: PATH, b: PATH}'"


def check_extract(action: Any, lora: Any) -> Lines:
    """The tuned model, and the shape of the adapter."""
    if action.name != "extract":
        return
    if not isinstance(lora, schema.LoraSpec):
        yield f"lora={lora.method}: action=extract needs the shape of an adapter; type lora=lora lora.r=32"
    elif odd := [
        *(key for key, plain in PLAIN_LORA_VALUES.items() if getattr(lora, key) not in plain),
        *list_extra_fields(lora),
    ]:
        wrong = odd[0]
        yield f"lora.{wrong}: action=extract makes a plain low-rank adapter; type lora=lora or lora=rslora, and leave lora.{wrong} at its default"
    folder = Path(action.tuned).expanduser()
    if not folder.is_dir():
        yield f"action.tuned={action.tuned}: there is no such folder; name that of a fine-tuned model"
    elif not any(folder.glob("*.safetensors")):
        yield f"action.tuned={action.tuned}: holds no .safetensors file (pickles are refused); convert its weights to safetensors"


def check_explain(action: Any) -> Lines:
    """Whose config is explained, and that it is there."""
    if action.name != "explain":
        return
    for key in ("run", "against"):
        folder = getattr(action, key)
        if folder is not None and not (Path(folder).expanduser() / CONFIG).is_file():
            yield f"action.{key}={folder}: is no run folder (no {CONFIG}); name one, such as outputs/train/RUN"
    if action.against is not None and action.run is None:
        yield f"action.run is not set; action.against={action.against} is compared with it: type action.run=RUN_FOLDER"
    names = paths.list_group_options("action")
    if action.of not in names:
        yield f"action.of={action.of}: is no action; actions: {', '.join(names)}; type action.of=train"


def check_output(action: Any) -> Lines:
    """Whether what is written, or continued, may be."""
    output_dir = getattr(action, "output_dir", None)
    if output_dir is not None and Path(output_dir).expanduser().exists():
        yield f"action.output_dir={output_dir}: exists already and is never overwritten; name a folder that does not exist"
    resume = getattr(action, "resume", None)
    if resume not in (None, "auto") and not all(
        (Path(resume).expanduser() / name).is_file() for name in (RECORD, CONFIG)
    ):
        yield f"action.resume={resume}: is no run folder (no {RECORD}); name one below outputs/train, or type action.resume=auto"


def check_export(action: Any, adapter: dict[str, str]) -> Lines:
    """What is exported is there, goes where it is to go, and nothing asked for would be ignored."""
    if action.name == "export":
        yield from export_checks.check_export(action, adapter)


def check_catalog(action: Any) -> Lines:
    """Where runs are looked for is there, and what is asked can be read."""
    if action.name in ("list", "compare", "browse"):
        yield from catalogue_checks.check_catalog(action)


def check_replay(action: Any) -> Lines:
    """The run to be done again is there, is complete, and leaves something to compare."""
    if action.name == "replay":
        yield from source_run.check_source_run(action)


def check_template(action: Any) -> Lines:
    """Where a package of configs is to be made, and that Python can name it."""
    if action.name != "template":
        return
    if action.path is None:
        yield "action.path is not set; action=template makes a folder: type path=our_templates"
        return
    name, key = Path(action.path).expanduser().name, f"action.path={action.path}"
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        yield f"{key}: its last part names a Python package: lower-case letters, digits and _; type path={_suggest_package_name(name)}"
    elif name == "peftrun" or name in sys.stdlib_module_names:
        yield f"{key}: {name} is the name of another package; type path=our_{name}"
    if Path(action.path).expanduser().exists():
        yield f"{key}: exists already and is never overwritten; name a folder that does not exist"


def _suggest_package_name(text: str) -> str:
    found = re.sub(r"\W+", "_", text.lower()).strip("_")
    return found if found.isidentifier() and not keyword.iskeyword(found) else f"our_{found}".rstrip("_")
