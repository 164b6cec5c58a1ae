"""Metrics of a record: before and after training, and on how many evaluation rows. Light."""

import math
from pathlib import PurePath
from typing import Any

from peftrun.artifacts.adapter_source import ExportSource


def read_metrics(source: ExportSource, when: str) -> dict[str, float]:
    """Finite metrics `before` or `after` training; empty if there are none."""
    metrics = (source.record.get("metrics") or {}).get(when) or {}
    if not isinstance(metrics, dict):
        return {}
    return {
        key: value
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def count_eval_rows(source: ExportSource) -> int | None:
    """Number of evaluation rows; None if the record has none."""
    count = (source.record.get("data") or {}).get("held_out_rows")
    return int(count) if count is not None else None


def get_dataset_name(values: dict[str, Any]) -> str | None:
    """Name of the dataset without paths of this machine; None without data."""
    data = (values.get("task") or {}).get("data") or {}
    path = data.get("path")
    if path is None:
        return None
    if data.get("source") == "package":
        return f"{data.get('package')}:{path}"
    return str(path) if data.get("source") == "hub" else PurePath(str(path)).name


def build_eval_results(source: ExportSource, values: dict[str, Any]) -> list[Any]:
    """Metrics after training as `huggingface_hub.EvalResult`s, for the card's model-index."""
    from huggingface_hub import EvalResult

    if source.record.get("action") != "train":
        return []
    name, kind = get_dataset_name(values) or "held-out rows", str(values["task"]["type"])
    rows = count_eval_rows(source)
    return [
        EvalResult(
            task_type=kind.replace("_", "-"),
            dataset_type=name if values["task"]["data"]["source"] == "hub" else "held-out",
            dataset_name=f"{name}, {rows} held-out rows" if rows else f"{name}, held-out rows",
            metric_type=key,
            metric_name=key,
            metric_value=value,
        )
        for key, value in read_metrics(source, "after").items()
    ]
