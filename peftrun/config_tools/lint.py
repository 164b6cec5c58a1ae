"""Every option on the search path, resolved: for a team's CI. Light; the models are built by whoever asks for it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftrun.artifacts import classifier_head
from peftrun.composition.composer import Composer
from peftrun.config import paths
from peftrun.config.schema.run import ModelSpec
from peftrun.config.search_path import packages, shadows
from peftrun.config_tools import lint_files, lint_options
from peftrun.config_tools.findings import FAULT, NOTE, Finding
from peftrun.config_tools.lint_options import Option

FitCheck = Callable[[ModelSpec, list[Any], classifier_head.ClassifierHead | None], list[Exception | None] | None]


def lint_search_path(search_path: Sequence[str], fits: FitCheck | None) -> list[Finding]:
    """What is found: of each option at least one finding.

    Args: search_path: what was given beside installed packages. fits: says what is at fault with methods on a model
        (`adapter.fit_check.check`); None: no model is built.
    """
    folders = packages.list_config_dirs(search_path)
    known = list(lint_options.list_options(folders, list(shadows.find_shadowed_configs(folders))))
    compositions = Composer(search_path)
    for option in known:
        lint_options.resolve_option(option, compositions)
    if fits:
        _build_models([one for one in known if one.spec and (one.group == "experiment" or not one.is_builtin)], fits)
    return [*lint_files.lint_folders(folders), *(one for option in known for one in option.found)]


def select_shown(found: Sequence[Finding]) -> list[Finding]:
    """What a person reads: everything of a team, and of peftrun's own what is not fine."""
    ours = str(paths.config_dir())
    return [one for one in found if one.line or not one.where.startswith(ours)]


def _build_models(known: list[Option], fits: FitCheck) -> None:
    """Each distinct model once, with each distinct method on it."""
    models: dict[str, list[Option]] = {}
    for option in known:
        models.setdefault(_serialize_spec(_get_model(option)), []).append(option)
    for users in models.values():
        methods = {_serialize_spec(option.spec.lora): option.spec.lora for option in users if option.spec}
        spec, head = _get_model(users[0])
        faults = fits(spec, list(methods.values()), head)
        told = dict(zip(methods, faults, strict=True)) if faults is not None else None
        for option in users:
            _add_model_findings(option, spec, told)


def _add_model_findings(option: Option, spec: ModelSpec, told: dict[str, Exception | None] | None) -> None:
    assert option.spec is not None
    if told is None:
        line = f"model.name_or_path={spec.name_or_path}: its config is not on this disk, so target_modules were not looked for"
        option.add(NOTE, line)
        return
    fault = told[_serialize_spec(option.spec.lora)]
    for line in getattr(fault, "lines", [str(fault)]) if fault else ():
        option.found = [one for one in option.found if one.line]
        option.add(FAULT, line)


def _get_model(option: Option) -> tuple[ModelSpec, classifier_head.ClassifierHead | None]:
    assert option.spec is not None
    return option.spec.model, classifier_head.get_task_head(option.spec.task)


def _serialize_spec(values: Any) -> str:
    plain = [asdict(one) if one else None for one in values] if isinstance(values, tuple) else asdict(values)
    return json.dumps(plain, sort_keys=True, default=str)


def count_verdicts(found: Sequence[Finding]) -> dict[str, int]:
    """Verdict → how many options have it as their worst."""
    worst: dict[str, str] = {}
    for one in found:
        worst[one.what] = max(worst.get(one.what, ""), one.verdict, key=["", "fine", NOTE, FAULT].index)
    return {kind: list(worst.values()).count(kind) for kind in ("fine", NOTE, FAULT)}


def relativize_path(one: Finding) -> Finding:
    """With a path that can be typed from here."""
    here = f"{Path.cwd()}/"
    return Finding(one.where.removeprefix(here), one.what, one.verdict, one.line)
