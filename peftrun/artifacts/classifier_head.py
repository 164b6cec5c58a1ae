"""A classifier's head: its kind and the names of its labels, from a task or from an adapter.

The base model is the plain encoder; the head belongs to the adapter and is saved in full in the same file, as PEFT does for
`AutoModelForSequenceClassification` and `AutoModelForTokenClassification`. The label names are in `peftrun.json`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.config.schema.objectives import RewardObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.errors import AdapterError
from peftrun.io import safetensors_header

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


def read_adapter_head(adapter: AdapterRef) -> ClassifierHead | None:
    """The head of a classifier's adapter; None for a language model's. Without `peftrun.json` labels are LABEL_0, LABEL_1, …

    Raises: AdapterError: it is a classifier's adapter and has no head.
    """
    kind = TASK_KINDS.get(str(adapter.config.get("task_type")))
    if kind is None:
        return None
    labels = (adapter.metadata or {}).get("labels")
    if labels:
        return ClassifierHead(kind, tuple(str(label) for label in labels))
    entries = safetensors_header.read_header(adapter.weights)
    sizes = [entry.shape[0] for entry in entries if HEAD_PATTERN.search(entry.name)]  # weight: (labels, hidden)
    if not sizes:
        raise AdapterError(
            f"{adapter.label}: is a {kind} adapter and holds no classifier; save it again with modules_to_save"
        )
    return ClassifierHead(kind, tuple(f"LABEL_{index}" for index in range(sizes[0])))


def select_head(task: TaskSpec, adapters: Mapping[str, AdapterRef], active: str | None) -> ClassifierHead | None:
    """The head that a run computes with: that of the active (or first) adapter; without adapters the task's."""
    if not adapters:
        return get_task_head(task)
    return read_adapter_head(adapters[active or next(iter(adapters))])
