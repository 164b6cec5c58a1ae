"""What was measured, as the record says: numbers before and after training, on how many held-out rows. Light."""

import math
from pathlib import PurePath
from typing import Any

from peftrun.artifacts.adapter_source import ExportSource


def read_metrics(source: ExportSource, when: str) -> dict[str, float]:
    """Measured numbers `before` or `after` training; empty where none were taken."""
    found = (source.record.get("metrics") or {}).get(when) or {}
    return {key: value for key, value in found.items() if _is_number(value)} if isinstance(found, dict) else {}


def count_eval_rows(source: ExportSource) -> int | None:
    """On how many rows; None where the record does not say."""
    found = (source.record.get("data") or {}).get("held_out_rows")
    return int(found) if found is not None else None


def get_dataset_name(values: dict[str, Any]) -> str | None:
    """What the rows are called, without paths of this machine; None where there are none."""
    data = (values.get("task") or {}).get("data") or {}
    path = data.get("path")
    if path is None:
        return None
    if data.get("source") == "package":
        return f"{data.get('package')}:{path}"
    return str(path) if data.get("source") == "hub" else PurePath(str(path)).name


def build_eval_results(source: ExportSource, values: dict[str, Any]) -> list[Any]:
    """`huggingface_hub.EvalResult`s of what was measured after training, for the card's model-index."""
    from huggingface_hub import EvalResult

    if source.record.get("action") != "train":
        return []
    name, kind = get_dataset_name(values) or "held-out rows", str(values["task"]["kind"])
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
