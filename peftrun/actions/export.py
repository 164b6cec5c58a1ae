"""Export for other programs: a Hub folder with a model card, a folder for vLLM, a GGUF adapter. No torch is imported."""

import shlex
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import adapter_folder, adapter_source, portable_names
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.checks import vllm_support
from peftrun.config.schema.actions import ExportAction
from peftrun.config.schema.run import RunSpec
from peftrun.errors import AdapterError, ConfigError
from peftrun.export import (
    adapter_files,
    base_config,
    gguf_adapter,
    hub_folder,
    licenses,
    own_tokenizer,
    push,
    vllm,
    wrapper,
)
from peftrun.export.base_config import ExportBase
from peftrun.formatting import format_bytes
from peftrun.io import atomic_files
from peftrun.result import RunResult

EXPORT_DIR = "export"
GGUF_FILE = "adapter.gguf"


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes to `action.output_dir`, or to `export/` in the run folder; with `action.push=true` also to the Hub."""
    action = spec.action
    assert isinstance(action, ExportAction)
    adapters: dict[str, AdapterRef] = {}
    if action.model_dir is not None:
        sources = [adapter_source.open_model_source(action.model_dir)]
    else:
        adapters = adapter_folder.resolve_adapters(spec.adapter)
        sources = [adapter_source.open_adapter_source(adapter) for adapter in adapters.values()]
    base = base_config.find(sources[0], spec.model if base_config.is_typed(out_dir) else None, action.base_model)
    _check_base_id(action, sources[0], base.id)
    # The Hub displays an unknown license id as no license at all.
    license_problem = licenses.explain_unknown_license(action.license) if action.license else None
    if license_problem:
        console.print_warning(license_problem)
    tokenizers = {
        source.name: _compare_tokenizer(source, base, action.target) for source in sources if source.is_adapter
    }
    export_dir = Path(action.output_dir).expanduser() if action.output_dir else out_dir / EXPORT_DIR
    with atomic_files.create_folder(export_dir) as folder:
        target_facts = _write_export(action, sources, base, folder)
    pushed = push.push_to_hub(export_dir, str(action.repo_id), action.private) if action.push else None
    files = adapter_files.list_files(export_dir)
    facts = {
        "target": action.target,
        "base": base.id,
        "files": files,
        **target_facts,
        "own_tokenizer": tokenizers,
        "pushed": pushed,
    }
    size = format_bytes(sum(files.values()))
    return RunResult(
        out_dir,
        {"export": facts},
        artifacts=[export_dir],
        summary=[
            ("folder", f"{len(files)} files, {size}: {console.shorten_path(export_dir)}"),
            *(("file", f"{size:>12,} bytes  {name}") for name, size in files.items()),
            *_format_outcome(action, target_facts, files, pushed),
            *_explain_base(action, sources[0], base),
        ],
        next_commands=_suggest_commands(action, _format_source(action, adapters), base, export_dir, target_facts),
    )


def _check_base_id(action: ExportAction, first: ExportSource, base_id: str | None) -> None:
    """Warns if the base model has no Hub id. Raises: ConfigError: it would be pushed without one."""
    if base_id is not None or action.target == "gguf":
        return
    line = (
        f"action.base_model is not set, and the base model is recorded as {portable_names.get_recorded_base_name(first) or 'nothing'}, which has no Hub id; "
        "type action.base_model=ORG/NAME"
    )
    if action.push:
        raise ConfigError(line)
    console.print_warning(line)


def _compare_tokenizer(source: ExportSource, base: ExportBase, target: str) -> dict[str, Any]:
    """The adapter's own tokenizer files, and in what they differ from the base model's (None: not known); warns if they do."""
    differs = own_tokenizer.find_differing_parts(source.folder, base.model)
    warning = own_tokenizer.describe_difference(source, differs, target)
    if warning:
        console.print_warning(warning)
    return {"files": [str(name) for name in own_tokenizer.list_files(source.folder)], "differs_in": differs}


def _write_export(action: ExportAction, sources: list[ExportSource], base: ExportBase, folder: Path) -> dict[str, Any]:
    if action.target == "hub":
        hub_folder.write_hub_folder(sources[0], base.id, action, folder)
        return {}
    model = base.model or {}
    settings = base_config.read_base_config(model) if model else None
    if action.target == "gguf":
        return {"gguf": gguf_adapter.write_gguf_adapter(sources[0], settings, base.id, folder / GGUF_FILE)}
    architecture = base_config.get_architecture(settings)
    problems = [line for source in sources for line in vllm_support.check_base_support(source, architecture)]
    if problems:
        raise AdapterError(*problems)
    if architecture is None:
        console.print_info(
            "the base model's config is not on this machine: whether vLLM supports LoRA for it was not checked"
        )
    # In a multimodal checkpoint the language model's tensors have another prefix than in transformers' class for it.
    # vLLM serves the checkpoint's class: an adapter under the training names would load and change nothing.
    renamed = {source.name: wrapper.map_tensor_names(source, model, settings) for source in sources}
    for name, tensors in renamed.items():
        if tensors:
            old, new = next(iter(tensors.items()))
            console.print_info(f"adapter.{name}: {len(tensors)} tensors renamed for {architecture}: {old} → {new}")
    return {"vllm": vllm.write_vllm_folder(sources, base.id, base.revision, folder, renamed)}


def _format_outcome(
    action: ExportAction, target_facts: dict[str, Any], files: dict[str, int], pushed: dict[str, Any] | None
) -> list[tuple[str, str]]:
    if pushed is not None:
        return [("pushed", f"{pushed['url']} ({pushed['commit']})")]
    if action.repo_id is not None:
        visibility = "private" if action.private else "public"
        return [
            ("not sent", f"push=true would create {action.repo_id} ({visibility}) if missing, and upload these {len(files)} files as one commit"),
            ("commit", push.COMMIT_MESSAGE),
        ]  # fmt: skip
    if action.target == "vllm":
        return [("checked", f"against the rules of {target_facts['vllm']['rules_of']}; not run in it")]
    return (
        [("pairs", f"{target_facts['gguf']['pairs']} for {target_facts['gguf']['architecture']}")]
        if action.target == "gguf"
        else []
    )


def _explain_base(action: ExportAction, first: ExportSource, base: ExportBase) -> list[tuple[str, str]]:
    """A summary row on the placeholder BASE, where the next command cannot name the base model for other machines."""
    name = portable_names.get_recorded_base_name(first) or "not recorded"
    if action.target == "vllm" and base.id is None and base.served:
        text = f"no Hub id is known for it, so {vllm.LAUNCH_SCRIPT} asks for BASE; base_model=ORG/NAME names one"
    elif action.target == "vllm" and base.id is None:
        text = f"replace BASE by its folder or Hub id (it is {name}), or name it: type base_model=ORG/NAME"
    elif action.target == "gguf" and _get_gguf_path(base) is None:
        location = base.here or base.id or name
        text = f"BASE.gguf is the base model as GGUF; llama.cpp's convert_hf_to_gguf.py converts its folder (it is {location})"
    else:
        return []
    return [("base", text)]


def _format_source(action: ExportAction, adapters: dict[str, AdapterRef]) -> str:
    """What is exported, as typed."""
    if action.model_dir:
        return f"action.model_dir={action.model_dir}"
    first = next(iter(adapters.values()))
    return f"adapter={first.path if first.hub else console.shorten_path(first.folder)}"


def _get_gguf_path(base: ExportBase) -> str | None:
    return base.here if base.place and base.place.suffix == ".gguf" else None


def _suggest_commands(
    action: ExportAction, source: str, base: ExportBase, export_dir: Path, facts: dict[str, Any]
) -> list[str]:
    folder = console.shorten_path(export_dir)
    if action.target == "vllm":
        served_adapters, served_base = facts["vllm"], base.served or "BASE"
        revision = base.revision if served_base == base.id else None
        serve_command = vllm.build_serve_command(
            list(served_adapters["adapters"]),
            served_base,
            revision,
            served_adapters["max_lora_rank"],
            f"{shlex.quote(folder)}/",
        )
        return [
            serve_command,
            f"{'' if served_base == base.id else f'BASE={served_base} '}{shlex.quote(f'{folder}/{vllm.LAUNCH_SCRIPT}')}",
        ]
    if action.target == "gguf":
        return [f"llama-cli -m {_get_gguf_path(base) or 'BASE.gguf'} --lora {shlex.quote(f'{folder}/{GGUF_FILE}')}"]
    if action.push:
        return []
    repo = action.repo_id or "ORG/NAME"
    private = "" if action.private else " private=false"
    optional = {"base_model": action.base_model or (None if base.id else "ORG/BASE"), "license": action.license}
    options = "".join(f" {key}={value}" for key, value in optional.items() if value)
    return [
        f"peftrun action=export {source}{options} repo_id={repo}{private} push=true",
        push.format_upload_command(repo, folder, action.private),
    ]
