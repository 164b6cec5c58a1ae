"""What a model card is about. Light."""

from dataclasses import dataclass
from typing import Any

from peftrun.artifacts.adapter_source import ExportSource


@dataclass(frozen=True)
class CardInfo:
    """What a model card tells from.

    Attributes:
        values: the run's configuration without paths of this machine; empty without a run.
        typed: what was typed for it.
        kind: of the task; None where nothing says so.
    """

    source: ExportSource
    values: dict[str, Any]
    typed: list[str]
    base_id: str | None
    repo_id: str | None
    license: str | None
    title: str
    kind: str | None
