"""Rules of a task and its data, beyond types. Light: checked before anything is loaded."""

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from string import Formatter
from typing import Any

from peftrun.artifacts import remote_files
from peftrun.artifacts.function_files import is_reference
from peftrun.checks import preferences as preference_checks
from peftrun.checks.unknown_keys import quote_for_shell
from peftrun.config.paths import no_file
from peftrun.config.schema import run as schema
from peftrun.config.template_params import FILELESS
from peftrun.system.packages import explain_not_installed, find_package_dir

Lines = Iterator[str]
# An action that none of these lists names must have a base model and rows.
MODELLESS = ("inspect", "diff", "export", *FILELESS)  # actions that check models and rows themselves, or need none
ROWLESS = ("save", "generate", "unmerge", "combine", "extract", "serve", *MODELLESS)  # actions that read no rows
TRAININGS = ("train", "plan", "preview")  # actions that train, or show a training
LM_EVAL = "lm_eval"
SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv", ".arrow", ".json", ".txt")  # of files of rows, most likely first
# Names of files with such a suffix that are not rows: of models, datasets, runs and Python projects.
NOT_ROWS = re.compile(
    r"config|tokenizer|vocab|index|merges|metrics|requirements|README|^(state|dataset_info|record|peftrun|package)"
)
MAX_NAMED_FILES = 4
# Arguments of transformers' apply_chat_template that control how a conversation is rendered.
RENDER_ARGUMENTS = {
    "messages", "conversation", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation",
    "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs",
}  # fmt: skip


def check_lm_eval(task: schema.TaskSpec, action: Any) -> Lines:
    """Tasks of lm-evaluation-harness are only for action=evaluate, and need its package."""
    if (task.type == LM_EVAL) != (task.lm_eval is not None):
        yield f"task.type={task.type}: task.lm_eval belongs to task.type=lm_eval, which needs it; type task=lm_eval task.lm_eval.tasks=[arc_easy]"
        return
    if task.lm_eval is None or action.name in MODELLESS:
        return
    if action.name != "evaluate":
        yield (
            f"task=lm_eval: is only for action=evaluate, and has no rows for action={action.name}; "
            "type action=evaluate, or another task"
        )
        return
    if find_spec("lm_eval") is None:
        yield explain_not_installed("task=lm_eval needs package", "lm_eval")
    folder = task.lm_eval.include_path
    if folder is not None and not any(Path(folder).expanduser().glob("**/*.y*ml")):
        yield f"task.lm_eval.include_path={folder}: is not a folder with YAML files; name the folder of your own tasks, or type null"


def check_validation_rows(task: schema.TaskSpec, trainer: schema.TrainerSpec, action: Any) -> Lines:
    """For a training, task.data.num_validation_rows and trainer.eval_strategy are set together or not at all."""
    if action.name not in TRAININGS:  # the task may be that of an adapter's run, and the trainer is not
        return
    if (trainer.eval_strategy == "no") != (task.data.num_validation_rows is None):
        yield (
            f"trainer.eval_strategy={trainer.eval_strategy}: contradicts task.data.num_validation_rows={task.data.num_validation_rows}; "
            "type both (trainer.eval_strategy=steps task.data.num_validation_rows=50), or neither"
        )


def check_classifier(task: schema.TaskSpec) -> Lines:
    """A classifier has its columns and its label names."""
    if task.type not in ("seq_cls", "token_cls"):
        return
    columns = {
        "seq_cls": {"task.prompt_template": task.prompt_template, "task.completion_template": task.completion_template},
        "token_cls": {"task.tokens_column": task.tokens_column, "task.tags_column": task.tags_column},
    }
    for key, value in columns[task.type].items():
        if value is None:
            yield f"{key} is not set; task.type={task.type} needs it: name a column"
    if task.label_names is None:
        yield f"task.label_names is not set; task.type={task.type} needs the names of its labels: type task.label_names=[no,yes]"
    elif len(set(task.label_names)) < len(task.label_names):
        yield f"task.label_names={task.label_names}: names must be unique; type task.label_names=[no,yes]"


def check_packing(task: schema.TaskSpec, trainer: schema.TrainerSpec) -> Lines:
    """Packed and padding-free batches are only for language models."""
    for key, enabled in {"packing": trainer.packing, "padding_free": trainer.padding_free}.items():
        if enabled and task.type != "causal_lm":
            yield f"trainer.{key}=true: task.type={task.type} needs one text per row; type trainer.{key}=false"


def check_templates(task: schema.TaskSpec) -> Lines:
    """Texts come from templates or from a messages column, and templates can be parsed."""
    if task.type in ("causal_lm", "seq_cls", "seq2seq") and (task.messages_column is None) == (
        task.completion_template is None
    ):
        yield "task.completion_template: exactly one of task.completion_template and task.messages_column is needed; type 'task.completion_template=\"{COLUMN}\"'"
    if (
        task.type not in preference_checks.KIND_OBJECTIVES
        and task.messages_column is not None
        and task.prompt_template is not None
    ):
        yield "task.prompt_template: cannot be combined with task.messages_column, which has the whole conversation; type task.prompt_template=null"
    if (task.data.labels is not None or task.data.balance) and task.data.label_column is None:
        yield "task.data.label_column is not set but task.data.labels or task.data.balance needs it; name a column"
    # Templates are Python format strings.
    for key, template in {
        "task.prompt_template": task.prompt_template,
        "task.completion_template": task.completion_template,
    }.items():
        try:
            list(Formatter().parse(template or ""))
        except ValueError as error:
            yield f"{key}={template}: is not a template ({error}); write columns as {{text}} and a brace as {{{{"


def check_sources(task: schema.TaskSpec) -> Lines:
    """Keys of how sources are read, mixed and split do not contradict each other."""
    data = task.data
    has_eval_source = data.test_path is not None or data.test_split is not None
    yield from _check_hub_keys(data)
    if data.streaming and data.num_train_rows is None:
        yield "task.data.num_train_rows is not set; task.data.streaming=true needs it as the number of rows to read: type task.data.num_train_rows=1000"
    if data.streaming and data.balance:
        yield "task.data.balance=true: needs every row, and task.data.streaming=true reads only the first ones; type task.data.balance=false"
    if data.group_column is not None and (data.mixture is not None or has_eval_source):
        yield "task.data.group_column: splits a single source, so it cannot be combined with task.data.mixture, test_path or test_split; type task.data.group_column=null"
    if data.split_strategy == "last" and (data.mixture is not None or has_eval_source or data.group_column is not None):
        yield "task.data.split_strategy=last: takes the end of a single source, so it cannot be combined with task.data.mixture, test_path, test_split or group_column; type task.data.split_strategy=random"
    for name, source in (data.mixture or {}).items():
        if data.source == "file":
            yield from _check_rows_file(f"task.data.mixture.{name}.path", source.path)


def _check_hub_keys(data: schema.DataSpec) -> Lines:
    if data.source == "hub":
        return
    for key, default in {"config_name": None, "revision": None, "split": "train", "test_split": None}.items():
        value = getattr(data, key)
        if value != default:
            yield f"task.data.{key}={value}: is only for a dataset on the Hub; omit it, or type task.data.source=hub"
    for name, source in (data.mixture or {}).items():
        if source.config_name or source.revision or source.split:
            yield f"task.data.mixture.{name}: config_name, revision and split are only for a dataset on the Hub; omit them, or type task.data.source=hub"


def check_files(task: schema.TaskSpec, action: Any) -> Lines:
    """Files and packages of rows exist, if the action reads rows."""
    data = task.data
    if not reads_rows(task, action):
        return
    paths = {"task.data.path": data.path} | ({"task.data.test_path": data.test_path} if data.test_path else {})
    # Files of a dataset on the Hub are not checked here: that would need the network.
    if data.source == "package":
        yield from _check_package_files(data.package, paths)
    if data.source == "file":
        for key, path in paths.items():
            yield from _check_rows_file(key, path)


def _check_rows_file(key: str, path: str) -> Lines:
    # Whether there is a file under a URL is not checked here: that would need the network.
    if remote_files.is_url(path):
        yield from check_url(f"{key}={path}", path)
        if not remote_files.get_file_name(path).lower().endswith(SUFFIXES):
            yield f"{key}={path}: its last part does not say the format; name a file that ends in {', '.join(SUFFIXES)}"
    elif not Path(path).expanduser().is_file():
        yield _explain_missing_rows(key, path)


def check_url(option: str, url: str) -> Lines:
    """A URL can be read with the packages that are installed."""
    if problem := remote_files.explain_unusable(url):
        yield f"{option}: {problem}"


def _check_package_files(package: str | None, paths: dict[str, str]) -> Lines:
    folder = find_package_dir(package) if package else None
    if package is None:
        yield "task.data.package is not set; name the installed package that contains task.data.path"
    elif folder is None:
        yield explain_not_installed("task.data.package", package)
    else:
        for key, path in paths.items():
            if (folder / path).is_file():
                continue
            if Path(path).expanduser().is_dir():
                yield _explain_missing_rows(key, path)
            else:
                yield f"{key}={path}: is neither a file of package {package} nor a file here; type {key}=FILE.jsonl (or csv, json, parquet, txt)"


def _explain_missing_rows(key: str, path: str) -> str:
    """A message for a path that is not a file; for a folder it names the files that may contain rows."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return f"{key}={path}: {no_file(path)}; type {key}=FILE.jsonl (or csv, json, parquet, txt)"
    files = [file for pattern in ("*", "*/*") for file in sorted(folder.glob(pattern)) if file.suffix in SUFFIXES]
    files = [file for file in files if not NOT_ROWS.search(file.name) and file.is_file()]
    files.sort(key=lambda file: SUFFIXES.index(file.suffix))
    if not files:
        return f"{key}={path}: is a folder without a file of rows; type {key}=FILE.jsonl (or csv, json, parquet, txt)"
    names = [str(file.relative_to(folder)) for file in files]
    more = f" and {len(names) - MAX_NAMED_FILES} more" if len(names) > MAX_NAMED_FILES else ""
    advice = quote_for_shell(f"{key}={Path(path) / names[0]}")
    return f"{key}={path}: is a folder, and rows are in a file; it has {', '.join(names[:MAX_NAMED_FILES])}{more}; type {advice}"


def reads_rows(task: schema.TaskSpec, action: Any) -> bool:
    """Whether an action reads rows of its task."""
    if task.type == LM_EVAL or action.name in ROWLESS:
        return False
    if action.name == "merge":
        return bool(action.verify and action.num_eval_rows)
    return action.name != "reload" or bool(action.evaluate)


def check_loss_on(task: schema.TaskSpec) -> Lines:
    """task.loss_on chooses the tokens of the loss, which only language models have."""
    if task.loss_on != "completion" and task.type != "causal_lm":
        yield f"task.loss_on={task.loss_on}: is only for language models, and task.type={task.type} is not; type task.loss_on=completion"
    if task.loss_on == "assistant" and task.messages_column is None:
        yield "task.loss_on=assistant: needs conversations, and task.messages_column is not set; type task.messages_column=COLUMN, or task.loss_on=completion"


def check_chat_template(task: schema.TaskSpec) -> Lines:
    """The tools file exists, and template_arguments sets nothing that peftrun passes itself."""
    if task.tools is not None and remote_files.is_url(task.tools):
        yield from check_url(f"task.tools={task.tools}", task.tools)
    elif task.tools is not None and not Path(task.tools).expanduser().is_file():
        yield f"task.tools={task.tools}: {no_file(task.tools)}; name a JSON file with a list of tools, or type task.tools=null"
    for name in sorted((task.template_arguments or {}).keys() & RENDER_ARGUMENTS):
        yield f"task.template_arguments.{name}: is set by peftrun itself; omit it, and type task.tools=FILE for tools"


def check_metrics(task: schema.TaskSpec) -> Lines:
    """Metrics of generated answers have something to compare, and their packages are installed."""
    if not task.metrics:
        return
    option = f"task.metrics=[{','.join(task.metrics)}]"
    if task.type not in ("causal_lm", "seq2seq"):
        yield f"{option}: compares generated texts, and task.type={task.type} generates none; type task.metrics=null"
    elif task.prompt_template is None and task.messages_column is None:
        yield f"{option}: compares answers to prompts, and plain text has none; type task.metrics=null"
    if task.data.adapter_column is not None:
        yield f"{option}: is computed with one adapter, so it cannot be combined with task.data.adapter_column; type task.metrics=null"
    for prefix, package in {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}.items():
        if (
            any(name.startswith(prefix) and not is_reference(name) for name in task.metrics)
            and find_spec(package) is None
        ):
            yield explain_not_installed(f"{option} needs package", package)


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("task", "trainer", "action"), check_validation_rows),
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
