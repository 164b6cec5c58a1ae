"""The data of a model card. Light."""

from dataclasses import dataclass
from typing import Any

from peftrun.artifacts.adapter_source import ExportSource


@dataclass(frozen=True)
class CardInfo:
    """The data that a model card is made from.

    Attributes:
        values: the run's configuration without paths of this machine; empty without a run.
        typed: the run's overrides.
        kind: task type; None if unknown.
    """

    source: ExportSource
    values: dict[str, Any]
    typed: list[str]
    base_id: str | None
    repo_id: str | None
    license: str | None
    title: str
    kind: str | None
