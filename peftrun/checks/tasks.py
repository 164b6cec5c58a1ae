"""What must hold of a task and its data, beyond types; light, before anything is loaded."""

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from string import Formatter
from typing import Any

from peftrun.checks import preferences as preference_checks
from peftrun.checks.unknown_keys import quote_for_shell
from peftrun.config.paths import no_file
from peftrun.config.schema import run as schema
from peftrun.config.template_params import FILELESS
from peftrun.system.packages import explain_not_installed, find_package_dir

Lines = Iterator[str]
MODELLESS = ("inspect", "diff", "export", *FILELESS)  # they see to models and rows themselves, or need none
ROWLESS = ("save", "generate", "unmerge", "combine", "extract", "serve", *MODELLESS)


LM_EVAL = "lm_eval"
SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv", ".arrow", ".json", ".txt")  # of rows
OF_MODELS = re.compile(
    r"config|tokenizer|vocab|index|merges|metrics|requirements|README|^(state|dataset_info|record|peftrun|package)"
)  # names of files that hold other things
SHOWN = 4
# Arguments of transformers' apply_chat_template that say how, and not what, is rendered.
RENDER_ARGUMENTS = {
    "messages", "conversation", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation",
    "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs",
}  # fmt: skip


def check_lm_eval(task: schema.TaskSpec, action: Any) -> Lines:
    """Tasks of lm-evaluation-harness are measured, and by nothing but action=evaluate."""
    if (task.kind == LM_EVAL) != (task.lm_eval is not None):
        yield f"task.kind={task.kind}: task.lm_eval is of task.kind=lm_eval, which needs it; type task=lm_eval task.lm_eval.tasks=[arc_easy]"
        return
    if task.lm_eval is None or action.name in MODELLESS:
        return
    if action.name != "evaluate":
        yield (
            f"task=lm_eval: is measured by action=evaluate alone, and action={action.name} has no rows of it; "
            "type action=evaluate, or another task"
        )
        return
    if find_spec("lm_eval") is None:
        yield explain_not_installed("task=lm_eval needs package", "lm_eval")
    folder = task.lm_eval.include_path
    if folder is not None and not any(Path(folder).expanduser().glob("**/*.y*ml")):
        yield f"task.lm_eval.include_path={folder}: is no folder with YAML files; name that of your own tasks, or type null"


def check_validation_rows(task: schema.TaskSpec, trainer: schema.TrainerSpec) -> Lines:
    """Rows to validate on are there if they are used, and the other way round."""
    if (trainer.eval_strategy == "no") != (task.data.validation_rows is None):
        yield (
            f"trainer.eval_strategy={trainer.eval_strategy}: task.data.validation_rows={task.data.validation_rows} does not go with it; "
            "type both (trainer.eval_strategy=steps task.data.validation_rows=50), or neither"
        )


def check_classifier(task: schema.TaskSpec) -> Lines:
    """What a classifier needs, and what it cannot do."""
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


def check_packing(task: schema.TaskSpec, trainer: schema.TrainerSpec) -> Lines:
    """Several texts in one row are for language models."""
    for key, asked in {"packing": trainer.packing, "padding_free": trainer.padding_free}.items():
        if asked and task.kind != "causal_lm":
            yield f"trainer.{key}=true: task.kind={task.kind} reads each text by itself; type trainer.{key}=false"


def check_templates(task: schema.TaskSpec) -> Lines:
    """Where texts are found, and that templates can be read."""
    if task.kind in ("causal_lm", "seq_cls", "seq2seq") and (task.messages is None) == (task.completion is None):
        yield "task.completion: exactly one of task.completion and task.messages is needed; type 'task.completion=\"{COLUMN}\"'"
    if task.kind not in preference_checks.KIND_OBJECTIVES and task.messages is not None and task.prompt is not None:
        yield "task.prompt: cannot stand beside task.messages, which holds the whole talk; type task.prompt=null"
    if (task.data.labels is not None or task.data.balance) and task.data.label_column is None:
        yield "task.data.label_column is not set but task.data.labels or task.data.balance needs it; name a column"
    for key, template in {"task.prompt": task.prompt, "task.completion": task.completion}.items():
        try:
            list(Formatter().parse(template or ""))
        except ValueError as error:
            yield f"{key}={template}: is not a template ({error}); write columns as {{text}} and a brace as {{{{"


def check_sources(task: schema.TaskSpec) -> Lines:
    """How sources are read, mixed and split."""
    data = task.data
    apart = data.eval_path is not None or data.eval_split is not None
    yield from _check_hub_keys(data)
    if data.streaming and data.train_rows is None:
        yield "task.data.train_rows is not set; task.data.streaming=true reads no more rows than that: type task.data.train_rows=1000"
    if data.streaming and data.balance:
        yield "task.data.balance=true: needs every row, and task.data.streaming=true reads the first; type task.data.balance=false"
    if data.group_column is not None and (data.mix is not None or apart):
        yield "task.data.group_column: splits one source, not beside task.data.mix, eval_path or eval_split; type task.data.group_column=null"
    if data.holdout == "last" and (data.mix is not None or apart or data.group_column is not None):
        yield "task.data.holdout=last: takes the end of one source, not beside task.data.mix, eval_path, eval_split or group_column; type task.data.holdout=random"
    for name, one in (data.mix or {}).items():
        if data.source == "file" and not Path(one.path).expanduser().is_file():
            yield _no_rows(f"task.data.mix.{name}.path", one.path)


def _check_hub_keys(data: schema.DataSpec) -> Lines:
    if data.source == "hub":
        return
    for key, usual in {"name": None, "revision": None, "split": "train", "eval_split": None}.items():
        value = getattr(data, key)
        if value != usual:
            yield f"task.data.{key}={value}: is of a dataset on the Hub; omit it, or type task.data.source=hub"
    for name, one in (data.mix or {}).items():
        if one.name or one.revision or one.split:
            yield f"task.data.mix.{name}: name, revision and split are of a dataset on the Hub; omit them, or type task.data.source=hub"


def check_files(task: schema.TaskSpec, action: Any) -> Lines:
    """The files and packages are there, where the action reads rows."""
    data = task.data
    if not reads_rows(task, action):
        return
    paths = {"task.data.path": data.path} | ({"task.data.eval_path": data.eval_path} if data.eval_path else {})
    if data.source == "package":
        yield from _in_package(data.package, paths)
    if data.source == "file":
        for key, path in paths.items():
            if not Path(path).expanduser().is_file():
                yield _no_rows(key, path)


def _in_package(package: str | None, paths: dict[str, str]) -> Lines:
    folder = find_package_dir(package) if package else None
    if package is None:
        yield "task.data.package is not set; name the installed package that holds task.data.path"
    elif folder is None:
        yield explain_not_installed("task.data.package", package)
    else:
        for key, path in paths.items():
            if (folder / path).is_file():
                continue
            if Path(path).expanduser().is_dir():
                yield _no_rows(key, path)
            else:
                yield f"{key}={path}: package {package} holds no such file, nor is it one here; type {key}=FILE.jsonl (or csv, json, parquet, txt)"


def _no_rows(key: str, path: str) -> str:
    """What is said of a path that is no file: of a folder what it holds."""
    if not Path(path).expanduser().is_dir():
        return f"{key}={path}: {no_file(path)}; type {key}=FILE.jsonl (or csv, json, parquet, txt)"
    inside = _row_files(Path(path).expanduser())
    if not inside:
        return f"{key}={path}: is a folder without a file of rows; type {key}=FILE.jsonl (or csv, json, parquet, txt)"
    names = [str(Path(path) / name) for name in inside]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{key}={path}: is a folder, and rows are in a file; it holds {', '.join(inside[:SHOWN])}{more}; type {quote_for_shell(f'{key}={names[0]}')}"


def _row_files(folder: Path) -> list[str]:
    """Files in a folder, or in folders of it, that may hold rows, the likeliest first."""
    found = [file for pattern in ("*", "*/*") for file in sorted(folder.glob(pattern)) if file.suffix in SUFFIXES]
    likely = [file for file in found if not OF_MODELS.search(file.name) and file.is_file()]
    return [str(file.relative_to(folder)) for file in sorted(likely, key=lambda file: SUFFIXES.index(file.suffix))]


def reads_rows(task: schema.TaskSpec, action: Any) -> bool:
    """Whether an action reads rows of its task."""
    if task.kind == LM_EVAL or action.name in ROWLESS:
        return False
    return action.name != "merge" or bool(action.verify and action.held_out_rows)


def check_loss_on(task: schema.TaskSpec) -> Lines:
    """Which tokens are learned is a question for language models alone."""
    if task.loss_on != "completion" and task.kind != "causal_lm":
        yield f"task.loss_on={task.loss_on}: is for language models, and task.kind={task.kind} is learned as a whole; type task.loss_on=completion"
    if task.loss_on == "assistant" and task.messages is None:
        yield "task.loss_on=assistant: learns every answer of a talk, and task.messages names none; type task.messages=COLUMN, or task.loss_on=completion"


def check_chat_template(task: schema.TaskSpec) -> Lines:
    """What a chat template is given beside the messages."""
    if task.tools is not None and not Path(task.tools).expanduser().is_file():
        yield f"task.tools={task.tools}: {no_file(task.tools)}; name a JSON file with a list of tools, or type task.tools=null"
    for name in sorted((task.template_arguments or {}).keys() & RENDER_ARGUMENTS):
        yield f"task.template_arguments.{name}: is set by peftrun itself; omit it, and type task.tools=FILE for tools"


def check_metrics(task: schema.TaskSpec) -> Lines:
    """Answers can be written and compared, with the packages that do so."""
    if not task.metrics:
        return
    named = f"task.metrics=[{','.join(task.metrics)}]"
    if task.kind not in ("causal_lm", "seq2seq"):
        yield f"{named}: compares texts that are written, and task.kind={task.kind} writes none; type task.metrics=null"
    elif task.prompt is None and task.messages is None:
        yield f"{named}: compares answers to prompts, and plain text has none; type task.metrics=null"
    if task.data.adapter_column is not None:
        yield f"{named}: is measured with one adapter, not beside task.data.adapter_column; type task.metrics=null"
    for prefix, package in {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}.items():
        if any(name.startswith(prefix) for name in task.metrics) and find_spec(package) is None:
            yield explain_not_installed(f"{named} needs package", package)


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("task", "trainer"), check_validation_rows),
    (("task",), check_templates),
    (("task",), check_classifier),
    (("task", "trainer"), check_packing),
    (("task",), check_sources),
    (("task", "action"), check_files),
    (("task",), check_loss_on),
    (("task",), check_chat_template),
    (("task",), check_metrics),
    (("task", "action"), check_lm_eval),
]
