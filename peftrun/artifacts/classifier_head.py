"""A classifier's head: its kind and the names of its labels, from a task or from an adapter.

The base model is the plain encoder; the head belongs to the adapter and is saved in full in the same file, as PEFT does for
`AutoModelForSequenceClassification` and `AutoModelForTokenClassification`. The label names are in `peftrun.json`.
"""

import re
from dataclasses import dataclass

from peftrun.artifacts import adapter_folder
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peftrun.config.schema.objectives import RewardObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.errors import AdapterError
from peftrun.io import safetensors_header
from peftrun.io.atomic_files import read_json

TASK_KINDS = {"SEQ_CLS": "seq_cls", "TOKEN_CLS": "token_cls"}  # PEFT's task_type → task.type
REWARD_LABELS = ("reward",)  # a reward model has one output
HEAD_PATTERN = re.compile(r"\.(classifier|score)(\.out_proj)?\.weight$")


@dataclass(frozen=True)
class ClassifierHead:
    """`kind`: seq_cls or token_cls. `labels`: their names, in the order of the head's outputs."""

    kind: str
    labels: tuple[str, ...]


def get_task_head(task: TaskSpec) -> ClassifierHead | None:
    """The head that a task trains; None for a language model."""
    if isinstance(task.objective, RewardObjective):
        return ClassifierHead("seq_cls", REWARD_LABELS)
    return ClassifierHead(task.type, tuple(task.label_names or ())) if task.type in TASK_KINDS.values() else None


def read_adapter_head(path: str, name: str) -> ClassifierHead | None:
    """The head of a classifier's adapter; None for a language model's. Without `peftrun.json` labels are LABEL_0, LABEL_1, …

    Raises: AdapterError: it is a classifier's adapter and has no head.
    """
    folder = adapter_folder.resolve_adapter_dir(path, name)
    kind = TASK_KINDS.get(str(read_json(folder / ADAPTER_CONFIG).get("task_type")))
    if kind is None:
        return None
    labels = (adapter_folder.read_peftrun_metadata(folder) or {}).get("labels")
    if labels:
        return ClassifierHead(kind, tuple(str(label) for label in labels))
    entries = safetensors_header.read_header(folder / ADAPTER_WEIGHTS)
    sizes = [entry.shape[0] for entry in entries if HEAD_PATTERN.search(entry.name)]  # weight: (labels, hidden)
    if not sizes:
        raise AdapterError(f"{folder}: is a {kind} adapter and holds no classifier; save it again with modules_to_save")
    return ClassifierHead(kind, tuple(f"LABEL_{index}" for index in range(sizes[0])))


def select_head(task: TaskSpec, adapter: dict[str, str], active: str | None) -> ClassifierHead | None:
    """The head that a run computes with: that of the active (or first) adapter; without adapters the task's."""
    if not adapter:
        return get_task_head(task)
    name = active or next(iter(adapter))
    return read_adapter_head(adapter[name], name)
