"""The sections of a model card, each from the record alone; an empty text where the record says nothing. Light."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.portable_names import get_recorded_base_name, shorten_path
from peftrun.export import card_metrics, own_tokenizer
from peftrun.export.card_data import CardInfo

METHOD_KEYS = (  # of the method: what people compare
    "r", "lora_alpha", "target_r", "init_r", "target_modules", "use_rslora", "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern",
    "lora_dropout", "modules_to_save", "layers_to_transform", "loraplus_lr_ratio",
)  # fmt: skip
TRAINER_KEYS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay",
    "max_grad_norm", "optim",
)  # fmt: skip
VERSION_KEYS = ("peftrun", "peft", "transformers", "torch", "trl", "datasets", "python")
AUTO_CLASSES = {
    "seq_cls": "AutoModelForSequenceClassification",
    "token_cls": "AutoModelForTokenClassification",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


def render_summary(about: CardInfo) -> str:
    """What this is, in one paragraph."""
    source, base_id = about.source, about.base_id
    what = f"{_format_method(source.config)} adapter for" if source.is_adapter else "Full model made from"
    base = (
        f"[{base_id}](https://huggingface.co/{base_id})"
        if base_id
        else f"`{get_recorded_base_name(source) or 'a base that was not noted'}`"
    )
    learned = source.facts.get("learned")
    text = f"{what} {base}" + (f", trained on {learned}" if learned else "") + "."
    by = source.facts.get("peftrun") or (source.record.get("versions") or {}).get("peftrun")
    made = f" Made with peftrun {by}, `action={source.record['action']}`." if by and source.record else ""
    unknown = "" if source.record else "\n\nNo record of how it was made is at hand, so nothing is said about that."
    merged = "\n\nThe adapter is merged into these weights; no adapter is needed." if source.facts.get("merged") else ""
    return text + made + merged + unknown


def render_metrics(about: CardInfo) -> str:
    """What was measured before and after, on how many rows."""
    source = about.source
    after, before = card_metrics.read_metrics(source, "after"), card_metrics.read_metrics(source, "before")
    if source.record.get("action") != "train" or not after:
        return "## Measured\n\nNothing was measured by the run that made it."
    rows = card_metrics.count_eval_rows(source)
    seen = (source.record.get("data") or {}).get("held_out_rows_learned")
    apart = (
        f"of which {seen} are training rows too, so that the figures flatter" if seen else "which training did not see"
    )
    intro = f"On {rows if rows is not None else 'the'} held-out rows of {card_metrics.get_dataset_name(about.values)}, {apart}"
    seed = source.record.get("seed")
    lines = [
        _format_row("metric", "base alone", "after training") if before else _format_row("metric", "after training")
    ]
    lines.append("|---|---|---|" if before else "|---|---|")
    lines += [
        _format_row(key, *([_format_number(before.get(key))] if before else []), _format_number(value))
        for key, value in after.items()
    ]
    end = f"One run, with seed {seed}: how much another seed differs was not measured. Nothing else was measured" + (
        " (not the base alone, either)." if not before else "."
    )
    return "\n".join([f"## Measured\n\n{intro}:\n", *lines, "", end])


def render_training(about: CardInfo) -> str:
    """How it was trained, or made of others."""
    source, values = about.source, about.values
    if source.record.get("action") != "train":
        return _render_derivation(source)
    rows = [*_iter_data_rows(source, values), *_iter_setting_rows(source, values), *_iter_machine_rows(source)]
    return "\n".join(
        [
            "## Training\n",
            _format_row("", ""),
            "|---|---|",
            *(_format_row(key, text) for key, text in rows),
            *_render_prompt(values),
        ]
    )


def render_usage(about: CardInfo) -> str:
    """How to load it, with PEFT or transformers, and with peftrun."""
    source, kind = about.source, about.kind
    here, base = about.repo_id or "FOLDER", about.base_id or "BASE"
    head = AUTO_CLASSES.get(kind or "", "AutoModelForCausalLM")
    labels = source.facts.get("labels")
    more = f", num_labels={len(labels)}, id2label={dict(enumerate(labels))}" if labels else ""
    if not source.is_adapter:
        return (
            f"## Use\n\n```python\nfrom transformers import {head}, AutoTokenizer\n\n"
            f'model = {head}.from_pretrained("{here}")\ntokenizer = AutoTokenizer.from_pretrained("{here}")\n```'
        )
    brought = own_tokenizer.files(source.folder)
    reads = here if Path("tokenizer_config.json") in brought or Path("tokenizer.json") in brought else base
    fetch = f"hf download {about.repo_id} --local-dir FOLDER\n" if about.repo_id else ""
    verb, asked = ("evaluate", "") if kind in AUTO_CLASSES else ("generate", " 'action.prompt=\"…\"'")
    missing = "" if about.base_id else "\n\n`BASE` is the base named above."
    return (
        f"## Use\n\nWith PEFT:\n\n```python\nfrom peft import PeftModel\nfrom transformers import {head}, AutoTokenizer\n\n"
        f'base = {head}.from_pretrained("{base}", dtype="auto"{more})\nmodel = PeftModel.from_pretrained(base, "{here}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{reads}")\n```{_brought(brought)}\n\nWith peftrun, which checks that the base is the one it was trained on:\n\n'
        f"```\n{fetch}peftrun action={verb} adapter=FOLDER model=pretrained model.name_or_path={base}{asked}\n```{missing}"
    )


def _brought(files: list[Path]) -> str:
    """What is to be known of a tokenizer or a chat template beside the adapter."""
    if not files:
        return ""
    names = ", ".join(f"`{name}`" for name in files)
    return (
        f"\n\nThe adapter brings files that say how text is read: {names}. They are as they came with it; peftrun itself reads text by "
        "the base's own, and uses these where they lie in a copy of the base that is named as the model."
    )


def render_reproduction(about: CardInfo) -> str:
    """The command that made it."""
    if not about.source.record:
        return ""
    line = shlex.join(["peftrun", *about.typed])
    return (
        f"## Reproduce\n\n```\n{line}\n```\n\n`config.yaml` holds every value of the run. Paths of the machine it ran on are "
        "shortened to their last part in both: put your own."
    )


def render_fingerprints(source: ExportSource) -> str:
    """What tells that base, data and weights are the same: sha256."""
    mark, data = source.fingerprint(), source.record.get("data") or {}
    rows = [(f"base, {key.replace('_', ' ')}", value) for key, value in mark.items() if value]
    rows += [("rows", data["digest"])] if data.get("digest") else []
    if not rows:
        return ""
    return "\n".join(
        [
            "## Fingerprints (sha256)\n",
            _format_row("", ""),
            "|---|---|",
            *(_format_row(key, f"`{text}`") for key, text in rows),
        ]
    )


def _format_method(config: dict[str, Any]) -> str:
    name = "DoRA" if config.get("use_dora") else str(config.get("peft_type", "PEFT")).replace("LORA", "LoRA")
    size = f" (r={config['r']}, alpha={config['lora_alpha']})" if config.get("lora_alpha") else ""
    return f"{name}{size}"


def _render_derivation(source: ExportSource) -> str:
    made = {key: source.facts[key] for key in ("combined", "extracted", "merged") if source.facts.get(key)}
    if not made:
        return ""
    return f"## Made of\n\n```json\n{json.dumps(made, indent=2, ensure_ascii=False)}\n```"


def _iter_data_rows(source: ExportSource, values: dict[str, Any]) -> Iterable[tuple[str, str]]:
    data, done = source.record.get("data") or {}, source.record.get("training") or {}
    yield "data", f"{card_metrics.get_dataset_name(values)}, task kind {values['task']['kind']}"
    if data.get("train_rows") is not None:
        yield "rows to train on", f"{data['train_rows']}"
    for key, label in (("steps", "steps"), ("train_loss", "mean training loss"), ("seconds", "seconds of training")):
        if done.get(key) is not None:
            yield label, _format_number(done[key])
    if source.record.get("status") == "stopped":
        yield "ended", "early, by a sweep"


def _iter_setting_rows(source: ExportSource, values: dict[str, Any]) -> Iterable[tuple[str, str]]:
    method = values["lora"]
    chosen = {key: method[key] for key in METHOD_KEYS if method.get(key) not in (None, False, {}, 0.0)}
    yield (
        "method",
        f"{method['method']}: " + ", ".join(f"{key} {_format_value(value)}" for key, value in chosen.items()),
    )
    if source.record.get("trainable_parameters"):
        yield "trained parameters", f"{source.record['trainable_parameters']} of {source.record['parameters']}"
    for key in TRAINER_KEYS:
        yield key, _format_value(values["trainer"][key])
    yield "seed", _format_value(source.record.get("seed"))


def _iter_machine_rows(source: ExportSource) -> Iterable[tuple[str, str]]:
    around = source.record.get("environment") or {}
    graphics = ", ".join(
        str(one.get("name", one)) if isinstance(one, dict) else str(one) for one in around.get("gpus") or []
    )
    if around.get("cpu"):
        yield "hardware", graphics or f"{around['cpu'].get('model')}, {around.get('cores')} cores, no GPU"
    if source.record.get("device"):
        yield "device", shorten_path(str(source.record["device"]))
    versions = source.record.get("versions") or {}
    yield "versions", ", ".join(f"{name} {versions[name]}" for name in VERSION_KEYS if name in versions)


def _render_prompt(values: dict[str, Any]) -> list[str]:
    """How a question was put to it, which whoever asks it needs to know."""
    asked = {
        key: values["task"].get(key)
        for key in ("system", "prompt", "completion", "messages")
        if values["task"].get(key)
    }
    return (
        ["", "Rows were put as:", "", "```json", json.dumps(asked, indent=2, ensure_ascii=False), "```"]
        if asked
        else []
    )


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _format_number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _format_row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
