"""The model card: only what the record holds, with metrics and on how many rows they were measured. Light."""

from typing import Any

from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.portable_names import get_recorded_base_name
from peftrun.export import card_metrics, card_sections
from peftrun.export.card_data import CardInfo

PIPELINE_TAGS = {  # task type → the Hub's pipeline tag, if it has one
    "causal_lm": "text-generation", "preference": "text-generation", "unpaired_preference": "text-generation",
    "prompt_only": "text-generation", "seq_cls": "text-classification", "token_cls": "token-classification",
}  # fmt: skip
TASK_KINDS = {"SEQ_CLS": "seq_cls", "TOKEN_CLS": "token_cls", "CAUSAL_LM": "causal_lm", "SEQ_2_SEQ_LM": "seq2seq"}


def render_card(about: CardInfo) -> str:
    """The text of README.md, metadata first."""
    from huggingface_hub import ModelCardData

    source, eval_results = about.source, card_metrics.build_eval_results(about.source, about.values)
    method = str(source.config.get("peft_type", "")).lower() if source.is_adapter else None
    data = (about.values.get("task") or {}).get("data") or {}
    metadata = ModelCardData(
        base_model=about.base_id,
        library_name="peft" if source.is_adapter else "transformers",
        license=about.license,
        pipeline_tag=PIPELINE_TAGS.get(about.kind or ""),
        tags=["peftrun", *([method] if method else []), *(["dora"] if source.config.get("use_dora") else [])],
        # The Hub links these names, so only datasets on the Hub are listed.
        datasets=[str(data["path"])] if data.get("source") == "hub" else None,
        model_name=about.title if eval_results else None,  # huggingface_hub requires it with eval_results
        eval_results=eval_results or None,
        base_model_relation=("adapter" if source.is_adapter else "finetune") if about.base_id else None,
    )
    parts = [
        f"# {about.title}",
        card_sections.render_summary(about),
        card_sections.render_metrics(about),
        card_sections.render_training(about),
        card_sections.render_usage(about),
        card_sections.render_reproduction(about),
        card_sections.render_fingerprints(source),
    ]
    return f"---\n{metadata.to_yaml().strip()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def collect_card_info(
    source: ExportSource, values: dict[str, Any], typed: list[str], base_id: str | None, action: Any
) -> CardInfo:
    """The data of the card. Args: values: the run's config without paths. typed: its overrides. Both are empty without a run."""
    if action.repo_id:
        title = action.repo_id.partition("/")[2]
    else:
        name = source.name if source.name != "default" else "adapter" if source.is_adapter else "model"
        title = f"{(base_id or get_recorded_base_name(source) or 'a').rpartition('/')[2]}-{name}"
    return CardInfo(
        source, values, typed, base_id, action.repo_id, action.license, title, get_task_kind(source, values)
    )


def get_task_kind(source: ExportSource, values: dict[str, Any]) -> str | None:
    """The task type, from the run or from PEFT's `task_type`; None if unknown."""
    recorded = (values.get("task") or {}).get("type") if source.record.get("action") == "train" else None
    return recorded or TASK_KINDS.get(str(source.config.get("task_type")))
