"""A truthful model card: what the record says, what was measured and on how many rows, and nothing else. Light."""

from typing import Any

from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.portable_names import get_recorded_base_name
from peftrun.export import card_metrics, card_sections
from peftrun.export.card_data import CardInfo

PIPELINE_TAGS = {  # task kind → what the Hub calls it, where it has a word
    "causal_lm": "text-generation", "preference": "text-generation", "unpaired_preference": "text-generation",
    "prompt_only": "text-generation", "seq_cls": "text-classification", "token_cls": "token-classification",
}  # fmt: skip
TASK_KINDS = {"SEQ_CLS": "seq_cls", "TOKEN_CLS": "token_cls", "CAUSAL_LM": "causal_lm", "SEQ_2_SEQ_LM": "seq2seq"}


def render_card(about: CardInfo) -> str:
    """README.md, metadata first."""
    parts = [
        f"# {about.title}",
        card_sections.render_summary(about),
        card_sections.render_metrics(about),
        card_sections.render_training(about),
        card_sections.render_usage(about),
        card_sections.render_reproduction(about),
        card_sections.render_fingerprints(about.source),
    ]
    return f"---\n{_render_metadata(about)}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def collect_card_info(
    source: ExportSource, values: dict[str, Any], typed: list[str], base_id: str | None, action: Any
) -> CardInfo:
    """What the card is about. `values`: the run's configuration without paths; `typed`: its overrides; both empty without a run."""
    title = action.repo_id.partition("/")[2] if action.repo_id else _format_title(source, base_id)
    return CardInfo(
        source, values, typed, base_id, action.repo_id, action.license, title, get_task_kind(source, values)
    )


def get_task_kind(source: ExportSource, values: dict[str, Any]) -> str | None:
    """The kind of task it was made for; None where nothing says so."""
    noted = (values.get("task") or {}).get("kind") if source.record.get("action") == "train" else None
    return noted or TASK_KINDS.get(str(source.config.get("task_type")))


def _format_title(source: ExportSource, base_id: str | None) -> str:
    own = "adapter" if source.is_adapter else "model"
    name = source.name if source.name != "default" else own
    return f"{(base_id or get_recorded_base_name(source) or 'a').rpartition('/')[2]}-{name}"


def _render_metadata(about: CardInfo) -> str:
    from huggingface_hub import ModelCardData

    source, found = about.source, card_metrics.build_eval_results(about.source, about.values)
    data = ModelCardData(
        base_model=about.base_id,
        library_name="peft" if source.is_adapter else "transformers",
        license=about.license,
        pipeline_tag=PIPELINE_TAGS.get(about.kind or ""),
        tags=_list_tags(source),
        datasets=_list_datasets(about.values),
        model_name=about.title if found else None,
        eval_results=found or None,
        base_model_relation=("adapter" if source.is_adapter else "finetune") if about.base_id else None,
    )
    return data.to_yaml().strip()


def _list_tags(source: ExportSource) -> list[str]:
    method = str(source.config.get("peft_type", "")).lower() if source.is_adapter else None
    return ["peftrun", *([method] if method else []), *(["dora"] if source.config.get("use_dora") else [])]


def _list_datasets(values: dict[str, Any]) -> list[str] | None:
    """Those on the Hub alone: another name would point at what is not there."""
    data = (values.get("task") or {}).get("data") or {}
    return [str(data["path"])] if data.get("source") == "hub" else None
