"""Write what others load: a Hub folder with a model card, a folder for vLLM, a GGUF adapter. Nothing heavy is imported."""

import shlex
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import adapter_source, portable_names
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
from peftrun.io import atomic_files
from peftrun.result import RunResult

EXPORT_DIR = "export"
GGUF_FILE = "adapter.gguf"


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The exported folder in `action.output_dir`, or `export/` in the run folder; with `action.push=true` also on the Hub."""
    action = spec.action
    assert isinstance(action, ExportAction)
    sources = _load_sources(spec, action)
    found = base_config.find(sources[0], spec.model if base_config.is_typed(out_dir) else None, action.base_model)
    _check_base_id(action, sources[0], found.id)
    _check_license(action.license)
    own = {one.name: _own_tokenizer(one, found, action.target) for one in sources if one.is_adapter}
    target = Path(action.output_dir).expanduser() if action.output_dir else out_dir / EXPORT_DIR
    with atomic_files.create_folder(target) as folder:
        written = _write_export(action, sources, found, folder)
    sent = push.push_to_hub(target, str(action.repo_id), action.private) if action.push else None
    files = adapter_files.list_files(target)
    facts = {"target": action.target, "base": found.id, "files": files, **written, "own_tokenizer": own, "pushed": sent}
    return RunResult(
        out_dir,
        {"export": facts},
        artifacts=[target],
        summary=[
            *_format_files(target, files),
            *_format_outcome(action, written, files, sent),
            *_base_told(action, sources[0], found),
        ],
        next_commands=_suggest_commands(action, sources[0], found, target, written),
    )


def _load_sources(spec: RunSpec, action: ExportAction) -> list[ExportSource]:
    if action.model_dir is not None:
        return [adapter_source.open_model_source(action.model_dir)]
    return [adapter_source.open_adapter_source(path, name) for name, path in spec.adapter.items()]


def _check_base_id(action: ExportAction, first: ExportSource, base_id: str | None) -> None:
    """A base that nobody else can find is told, and not published."""
    if base_id is not None or action.target == "gguf":
        return
    line = (
        f"action.base_model is not set, and the base is known as {portable_names.get_recorded_base_name(first) or 'nothing'} here, which others cannot find; "
        "type action.base_model=ORG/NAME"
    )
    if action.push:
        raise ConfigError(line)
    console.print_warning(line)


def _check_license(name: str | None) -> None:
    """The Hub shows an id that it does not know as no licence at all."""
    line = licenses.explain_unknown_license(name) if name else None
    if line:
        console.print_warning(line)


def _own_tokenizer(one: ExportSource, known: ExportBase, target: str) -> dict[str, Any]:
    """Says aloud where files beside an adapter read text otherwise than its base does; for the record which, and in what (None: not known)."""
    differs = own_tokenizer.differing(one.folder, known.model)
    line = own_tokenizer.told(one, differs, target)
    if line:
        console.print_warning(line)
    return {"files": [str(name) for name in own_tokenizer.files(one.folder)], "differs_in": differs}


def _write_export(action: ExportAction, sources: list[ExportSource], known: ExportBase, folder: Path) -> dict[str, Any]:
    if action.target == "hub":
        hub_folder.write_hub_folder(sources[0], known.id, action, folder)
        return {}
    model = known.model or {}
    settings = base_config.read_base_config(model) if model else None
    if action.target == "gguf":
        return {"gguf": gguf_adapter.write_gguf_adapter(sources[0], settings, known.id, folder / GGUF_FILE)}
    architecture = base_config.get_architecture(settings)
    problems = [line for one in sources for line in vllm_support.check_base_support(one, architecture)]
    if problems:
        raise AdapterError(*problems)
    if architecture is None:
        console.print_info("the base's config is not on this machine: whether vLLM has LoRA for it was not checked")
    renamed = {one.name: wrapper.map_tensor_names(one, model, settings) for one in sources}
    for name, tensors in renamed.items():
        if tensors:
            old, new = next(iter(tensors.items()))
            console.print_info(f"adapter.{name}: {len(tensors)} tensors get the names of {architecture}: {old} → {new}")
    return {"vllm": vllm.write_vllm_folder(sources, known.id, known.revision, folder, renamed)}


def _format_files(target: Path, files: dict[str, int]) -> list[tuple[str, str]]:
    total = sum(files.values())
    rows = [("folder", f"{len(files)} files, {console.format_megabytes(total)}: {console.shorten_path(target)}")]
    return rows + [("file", f"{size:>12,} bytes  {name}") for name, size in files.items()]


def _format_outcome(
    action: ExportAction, found: dict[str, Any], files: dict[str, int], sent: dict[str, Any] | None
) -> list[tuple[str, str]]:
    if sent is not None:
        return [("pushed", f"{sent['url']} ({sent['commit']})")]
    if action.repo_id is not None:
        kind = "private" if action.private else "public"
        return [
            ("not sent", f"push=true would make {action.repo_id} ({kind}) where there is none, and put these {len(files)} files into one commit"),
            ("commit", push.COMMIT_MESSAGE),
        ]  # fmt: skip
    if action.target == "vllm":
        return [("checked", f"against the rules of {found['vllm']['rules_of']}; not run with it")]
    return (
        [("pairs", f"{found['gguf']['pairs']} for {found['gguf']['architecture']}")] if action.target == "gguf" else []
    )


def _base_told(action: ExportAction, first: ExportSource, known: ExportBase) -> list[tuple[str, str]]:
    """What to put where a command could not name the base, or names what only this machine has."""
    called = portable_names.get_recorded_base_name(first) or "not noted anywhere"
    if action.target == "vllm" and known.id is None:
        if known.served:
            return [
                (
                    "base",
                    f"no Hub id is known for it, so {vllm.LAUNCH_SCRIPT} asks for BASE; base_model=ORG/NAME names one",
                )
            ]
        return [
            (
                "base",
                f"put its folder or Hub id in place of BASE (it is {called}), or name it: type base_model=ORG/NAME",
            )
        ]
    if action.target == "gguf" and _gguf_of(known) is None:
        where = known.here or known.id or called
        return [
            (
                "base",
                f"BASE.gguf is the base as GGUF; llama.cpp's convert_hf_to_gguf.py makes it of its folder (it is {where})",
            )
        ]
    return []


def _gguf_of(known: ExportBase) -> str | None:
    return known.here if known.place and known.place.suffix == ".gguf" else None


def _suggest_commands(
    action: ExportAction, first: ExportSource, known: ExportBase, target: Path, facts: dict[str, Any]
) -> list[str]:
    here = console.shorten_path(target)
    if action.target == "vllm":
        found, serves = facts["vllm"], known.served or "BASE"
        at = known.revision if serves == known.id else None
        line = vllm.build_serve_command(
            list(found["adapters"]), serves, at, found["max_lora_rank"], f"{shlex.quote(here)}/"
        )
        return [line, f"{'' if serves == known.id else f'BASE={serves} '}{shlex.quote(f'{here}/{vllm.LAUNCH_SCRIPT}')}"]
    if action.target == "gguf":
        return [f"llama-cli -m {_gguf_of(known) or 'BASE.gguf'} --lora {shlex.quote(f'{here}/{GGUF_FILE}')}"]
    return [] if action.push else _build_push_commands(action, first, known.id, here)


def _build_push_commands(action: ExportAction, first: ExportSource, base_id: str | None, here: str) -> list[str]:
    repo = action.repo_id or "ORG/NAME"
    given = (
        f"action.model_dir={action.model_dir}" if action.model_dir else f"adapter={console.shorten_path(first.folder)}"
    )
    private = "" if action.private else " private=false"
    named = {"base_model": action.base_model or (None if base_id else "ORG/BASE"), "license": action.license}
    more = "".join(f" {key}={value}" for key, value in named.items() if value)
    return [
        f"peftrun action=export {given}{more} repo_id={repo}{private} push=true",
        push.format_upload_command(repo, here, action.private),
    ]
