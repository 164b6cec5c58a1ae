"""The sections of a model card, each from the record alone; empty if the record has nothing on it. Light."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peftrun.artifacts import lineage
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.portable_names import get_recorded_base_name, shorten_path
from peftrun.export import card_metrics, own_tokenizer
from peftrun.export.card_data import CardInfo
from peftrun.formatting import format_number, format_value

METHOD_KEYS = (  # config keys of the adapter method that one compares
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
    """What it is, in one paragraph."""
    source, base_id, config = about.source, about.base_id, about.source.config
    text = "Full model made from "
    if source.is_adapter:
        method = "DoRA" if config.get("use_dora") else str(config.get("peft_type", "PEFT")).replace("LORA", "LoRA")
        size = f" (r={config['r']}, alpha={config['lora_alpha']})" if config.get("lora_alpha") else ""
        text = f"{method}{size} adapter for "
    if base_id:
        text += f"[{base_id}](https://huggingface.co/{base_id})"
    else:
        text += f"`{get_recorded_base_name(source) or 'an unknown base model'}`"
    trained_on = source.facts.get("trained_on")
    text += f", trained on {trained_on}." if trained_on else "."
    version = source.facts.get("peftrun") or (source.record.get("versions") or {}).get("peftrun")
    if version and source.record:
        text += f" Made with peftrun {version}, `action={source.record['action']}`."
    if source.facts.get("merged"):
        text += "\n\nThe adapter is merged into these weights; no adapter is needed."
    if not source.record:
        text += "\n\nThere is no record of how it was made, so it is unknown."
    return text


def render_metrics(about: CardInfo) -> str:
    """Metrics before and after training, and on how many rows."""
    source = about.source
    after, before = card_metrics.read_metrics(source, "after"), card_metrics.read_metrics(source, "before")
    if source.record.get("action") != "train" or not after:
        return "## Measured\n\nNothing was measured by the run that made it."
    rows = card_metrics.count_eval_rows(source)
    overlap = (source.record.get("data") or {}).get("held_out_rows_learned")
    seen = (
        f"of which {overlap} are training rows too, so the metrics are too good" if overlap else "which training did not see"
    )  # fmt: skip
    intro = f"On {rows if rows is not None else 'the'} evaluation rows of {card_metrics.get_dataset_name(about.values)}, {seen}"
    if before:
        start = "the adapter it continues" if source.facts.get("parent") else "base model"
        lines = [_format_row("metric", start, "after training"), "|---|---|---|"]
        lines += [_format_row(key, format_number(before.get(key)), format_number(after[key])) for key in after]
    else:
        lines = [_format_row("metric", "after training"), "|---|---|"]
        lines += [_format_row(key, format_number(value)) for key, value in after.items()]
    end = f"One run, with seed {source.record.get('seed')}: the variance over seeds was not measured. Nothing else was measured"
    end += "." if before else " (not the base model alone, either)."
    return "\n".join([f"## Measured\n\n{intro}:\n", *lines, "", end])


def render_training(about: CardInfo) -> str:
    """How it was trained, or derived from other adapters."""
    source, values = about.source, about.values
    if source.record.get("action") != "train":
        derived = {key: source.facts[key] for key in ("combined", "extracted", "merged") if source.facts.get(key)}
        return f"## Made of\n\n```json\n{_format_json(derived)}\n```" if derived else ""
    rows = [_format_row(key, text) for key, text in _iter_training_rows(source, values)]
    lines = ["## Training\n", _format_row("", ""), "|---|---|", *rows]
    # The format of prompts, which one needs for asking the model.
    keys = ("system_prompt", "prompt_template", "completion_template", "messages_column")
    prompt = {key: values["task"].get(key) for key in keys if values["task"].get(key)}
    if prompt:
        lines += ["", "Prompts of the training:", "", "```json", _format_json(prompt), "```"]
    return "\n".join(lines)


def render_usage(about: CardInfo) -> str:
    """How to load it, with PEFT or transformers, and with peftrun."""
    source, kind = about.source, about.kind
    name, base = about.repo_id or "FOLDER", about.base_id or "BASE"
    auto_class = AUTO_CLASSES.get(kind or "", "AutoModelForCausalLM")
    if not source.is_adapter:
        return (
            f"## Use\n\n```python\nfrom transformers import {auto_class}, AutoTokenizer\n\n"
            f'model = {auto_class}.from_pretrained("{name}")\ntokenizer = AutoTokenizer.from_pretrained("{name}")\n```'
        )
    labels = source.facts.get("labels")
    options = f", num_labels={len(labels)}, id2label={dict(enumerate(labels))}" if labels else ""
    files = own_tokenizer.list_files(source.folder)
    tokenizer = name if Path("tokenizer_config.json") in files or Path("tokenizer.json") in files else base
    note = ""
    if files:
        names = ", ".join(f"`{file}`" for file in files)
        note = (
            f"\n\nThe adapter was trained with the tokenizer or chat template in {names}, not with the base model's own; peftrun uses them too."
            if source.base().get("tokens")
            else f"\n\nThe adapter comes with tokenizer or chat template files: {names}. They are unchanged; peftrun itself uses those of the "
            "base model, or these if they are in a copy of the base model that is named as the model."
        )
    fetch = f"hf download {about.repo_id} --local-dir FOLDER\n" if about.repo_id else ""
    action, prompt = ("evaluate", "") if kind in AUTO_CLASSES else ("generate", " 'action.prompt=\"…\"'")
    resize = ""
    if (source.base().get("tokens") or {}).get("new_tokens"):  # rows for them, where the base model has none
        resize = "base.resize_token_embeddings(max(len(tokenizer), base.get_input_embeddings().num_embeddings))\n"
    missing = "" if about.base_id else "\n\n`BASE` is the base model named above."
    return (
        f"## Use\n\nWith PEFT:\n\n```python\nfrom peft import PeftModel\nfrom transformers import {auto_class}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")\nbase = {auto_class}.from_pretrained("{base}", dtype="auto"{options})\n'
        f'{resize}model = PeftModel.from_pretrained(base, "{name}")\n```{note}\n\nWith peftrun, which checks that the base model is the one it was trained on:\n\n'
        f"```\n{fetch}peftrun action={action} adapter=FOLDER model=pretrained model.name_or_path={base}{prompt}\n```{missing}"
    )


def render_reproduction(about: CardInfo) -> str:
    """The command that made it."""
    if not about.source.record:
        return ""
    line = shlex.join(["peftrun", *about.typed])
    return (
        f"## Reproduce\n\n```\n{line}\n```\n\n`config.yaml` holds every value of the run. Paths of the machine it ran on are "
        "shortened to their last part in both: replace them with your own."
    )


def render_fingerprints(source: ExportSource) -> str:
    """sha256 of base model and data."""
    data = source.record.get("data") or {}
    rows = [(f"base, {key.replace('_', ' ')}", digest) for key, digest in source.fingerprint().items() if digest]
    rows += [("rows", data["digest"])] if data.get("digest") else []
    if not rows:
        return ""
    lines = [_format_row(key, f"`{digest}`") for key, digest in rows]
    return "\n".join(["## Fingerprints (sha256)\n", _format_row("", ""), "|---|---|", *lines])


def _iter_training_rows(source: ExportSource, values: dict[str, Any]) -> Iterable[tuple[str, str]]:
    data, training = source.record.get("data") or {}, source.record.get("training") or {}
    yield "data", f"{card_metrics.get_dataset_name(values)}, task type {values['task']['type']}"
    if data.get("train_rows") is not None:
        yield "training rows", f"{data['train_rows']}"
    if chain := lineage.format_chain(source.facts):
        yield "continues", chain
    for key, label in (("steps", "steps"), ("train_loss", "mean training loss"), ("seconds", "seconds of training")):
        if training.get(key) is not None:
            yield label, format_number(training[key])
    if source.record.get("status") == "stopped":
        yield "ended", "early, by a sweep"
    method = values["lora"]
    chosen = {
        key: method[key] for key in METHOD_KEYS if method.get(key) not in (None, False, {}, 0.0)
    }  # not switched off
    settings = ", ".join(f"{key} {format_value(value)}" for key, value in chosen.items())
    yield "method", f"{method['method']}: {settings}"
    if source.record.get("trainable_parameters"):
        yield "trained parameters", f"{source.record['trainable_parameters']} of {source.record['parameters']}"
    for key in TRAINER_KEYS:
        yield key, format_value(values["trainer"][key])
    yield "seed", format_value(source.record.get("seed"))
    environment = source.record.get("environment") or {}
    gpus = ", ".join(
        str(gpu.get("name", gpu)) if isinstance(gpu, dict) else str(gpu) for gpu in environment.get("gpus") or []
    )
    if environment.get("cpu"):
        yield "hardware", gpus or f"{environment['cpu'].get('model')}, {environment.get('cores')} cores, no GPU"
    if source.record.get("device"):
        yield "device", shorten_path(str(source.record["device"]))
    versions = source.record.get("versions") or {}
    yield "versions", ", ".join(f"{name} {versions[name]}" for name in VERSION_KEYS if name in versions)


def _format_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False)


def _format_row(*cells: str) -> str:
    # A row of a Markdown table: a pipe or a line end in a cell would break it.
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
