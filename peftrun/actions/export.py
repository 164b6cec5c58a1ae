"""Write what others load: a Hub folder with a model card, a folder for vLLM, a GGUF adapter. Nothing heavy is imported."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from peftrun import artifacts, console
from peftrun.action_specs import ExportAction
from peftrun.errors import AdapterError, ConfigError
from peftrun.export import adapter_files, base, hub, licenses, llama_cpp, names, push, source, vllm, vllm_rules, wrapper
from peftrun.export.source import Source
from peftrun.packages import package_dir
from peftrun.result import RunResult
from peftrun.schema import RunSpec

EXPORT = "export"
GGUF = "adapter.gguf"


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The exported folder in `action.output_dir`, or `export/` in the run folder; with `action.push=true` also on the Hub."""
    action = spec.action
    assert isinstance(action, ExportAction)
    sources = _sources(spec, action)
    base_id = names.base_id(sources[0], action.base_model)
    _check_base_id(action, sources[0], base_id)
    _check_license(action.license)
    target = Path(action.output_dir).expanduser() if action.output_dir else out_dir / EXPORT
    with artifacts.new_folder(target) as folder:
        found = _write(spec, action, sources, base_id, folder)
    sent = push.push(target, str(action.repo_id), action.private) if action.push else None
    files = adapter_files.listed(target)
    facts = {"target": action.target, "base": base_id, "files": files, **found, "pushed": sent}
    return RunResult(
        out_dir,
        {"export": facts},
        artifacts=[target],
        summary=[*_files(target, files), *_told(action, found, files, sent)],
        next_commands=_next(action, sources[0], base_id, target, found),
    )


def _sources(spec: RunSpec, action: ExportAction) -> list[Source]:
    if action.model_dir is not None:
        return [source.of_model(action.model_dir)]
    return [source.of_adapter(path, name) for name, path in spec.adapter.items()]


def _check_base_id(action: ExportAction, first: Source, base_id: str | None) -> None:
    """A base that nobody else can find is told, and not published."""
    if base_id is not None or action.target == "gguf":
        return
    line = (
        f"action.base_model is not set, and the base is known as {names.known_as(first) or 'nothing'} here, which others cannot find; "
        "type action.base_model=ORG/NAME"
    )
    if action.push:
        raise ConfigError(line)
    console.warn(line)


def _check_license(name: str | None) -> None:
    """The Hub shows an id that it does not know as no licence at all."""
    line = licenses.unknown(name) if name else None
    if line:
        console.warn(line)


def _write(
    spec: RunSpec, action: ExportAction, sources: list[Source], base_id: str | None, folder: Path
) -> dict[str, Any]:
    if action.target == "hub":
        hub.write(sources[0], base_id, action, folder)
        return {}
    model = base.model_of(sources[0]) or dataclasses.asdict(spec.model)
    settings = base.settings(model)
    if action.target == "gguf":
        return {"gguf": llama_cpp.write(sources[0], settings, base_id, folder / GGUF)}
    architecture = base.architecture(settings)
    problems = [line for one in sources for line in vllm_rules.of_base(one, architecture)]
    if problems:
        raise AdapterError(*problems)
    if architecture is None:
        console.say("the base's config is not on this machine: whether vLLM has LoRA for it was not checked")
    renamed = {one.name: wrapper.names(one, model, settings) for one in sources}
    for name, tensors in renamed.items():
        if tensors:
            old, new = next(iter(tensors.items()))
            console.say(f"adapter.{name}: {len(tensors)} tensors get the names of {architecture}: {old} → {new}")
    return {"vllm": vllm.write(sources, base_id, sources[0].base().get("revision"), folder, renamed)}


def _files(target: Path, files: dict[str, int]) -> list[tuple[str, str]]:
    total = sum(files.values())
    rows = [("folder", f"{len(files)} files, {console.megabytes(total)}: {console.short(target)}")]
    return rows + [("file", f"{size:>12,} bytes  {name}") for name, size in files.items()]


def _told(
    action: ExportAction, found: dict[str, Any], files: dict[str, int], sent: dict[str, Any] | None
) -> list[tuple[str, str]]:
    if sent is not None:
        return [("pushed", f"{sent['url']} ({sent['commit']})")]
    if action.repo_id is not None:
        kind = "private" if action.private else "public"
        return [
            ("not sent", f"push=true would make {action.repo_id} ({kind}) where there is none, and put these {len(files)} files into one commit"),
            ("commit", push.MESSAGE),
        ]  # fmt: skip
    if action.target == "vllm":
        unnamed = (
            []
            if found["vllm"]["base"]
            else [
                (
                    "base",
                    "no Hub id is known for it; base_model=ORG/NAME names one, else put its folder in place of BASE",
                )
            ]
        )
        return [*unnamed, ("checked", f"against the rules of {found['vllm']['rules_of']}; not run with it")]
    return (
        [("pairs", f"{found['gguf']['pairs']} for {found['gguf']['architecture']}")] if action.target == "gguf" else []
    )


def _next(action: ExportAction, first: Source, base_id: str | None, target: Path, facts: dict[str, Any]) -> list[str]:
    here = console.short(target)
    if action.target == "vllm":
        known, at = facts["vllm"], first.base().get("revision")
        local = _base_here(first)
        names, rank, serves = list(known["adapters"]), known["max_lora_rank"], base_id or local or "BASE"
        line = vllm.command(names, serves, at if base_id else None, rank, f"{shlex.quote(here)}/")
        return [line, f"{'' if base_id else f'BASE={serves} '}{shlex.quote(f'{here}/{vllm.LAUNCH}')}"]
    if action.target == "gguf":
        local = _base_here(first) or ""
        model = local if ".gguf" in local else "BASE.gguf"
        return [f"llama-cli -m {model} --lora {shlex.quote(f'{here}/{GGUF}')}"]
    return [] if action.push else _to_push(action, first, base_id, here)


def _base_here(first: Source) -> str | None:
    """The file or folder on this machine that the adapter's run had for a base, as a shell reads it."""
    given = base.model_of(first) or {}
    path = Path(str(given.get("name_or_path"))).expanduser()
    if given.get("package"):
        path = (package_dir(str(given["package"])) or Path()) / path
    return shlex.quote(str(path.absolute())) if path.exists() else None


def _to_push(action: ExportAction, first: Source, base_id: str | None, here: str) -> list[str]:
    repo = action.repo_id or "ORG/NAME"
    given = f"action.model_dir={action.model_dir}" if action.model_dir else f"adapter={console.short(first.folder)}"
    private = "" if action.private else " private=false"
    named = {"base_model": action.base_model or (None if base_id else "ORG/BASE"), "license": action.license}
    more = "".join(f" {key}={value}" for key, value in named.items() if value)
    return [
        f"peftrun action=export {given}{more} repo_id={repo}{private} push=true",
        push.by_hand(repo, here, action.private),
    ]
