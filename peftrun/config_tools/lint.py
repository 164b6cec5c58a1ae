"""Composes and checks every option on the search path, for a team's CI. Light: the caller passes in the check of models."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
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

# (model, methods, head) → an error or None for each method; None if the model's config is not available offline.
FitCheck = Callable[[ModelSpec, list[Any], classifier_head.ClassifierHead | None], list[Exception | None] | None]


def lint_search_path(search_path: Sequence[str], check_fit: FitCheck | None) -> list[Finding]:
    """At least one finding for each option.

    Args: search_path: folders and packages in addition to installed config packages. check_fit: checks methods on a model
        (`adapters.target_check.check_targets`); None: no model is built.
    """
    folders = packages.list_config_dirs(search_path)
    options = list(lint_options.list_options(folders, list(shadows.find_shadowed_configs(folders))))
    compositions = Composer(search_path)
    for option in options:
        lint_options.resolve_option(option, compositions)
    if check_fit:
        # Of peftrun's own options only experiments choose model and method; the team's options may set either.
        composed = [option for option in options if option.spec]
        _check_models(
            [option for option in composed if option.group == "experiment" or not option.is_builtin], check_fit
        )
    return [*lint_files.lint_folders(folders), *(finding for option in options for finding in option.found)]


def select_shown(results: Sequence[Finding]) -> list[Finding]:
    """Findings to display: all of the team's options, and of peftrun's own those that are not fine."""
    builtin_dir = str(paths.config_dir())
    return [finding for finding in results if finding.line or not finding.where.startswith(builtin_dir)]


def _check_models(options: list[Option], check_fit: FitCheck) -> None:
    """Builds each distinct model once, and checks each distinct method on it."""
    groups: dict[str, list[Option]] = {}
    for option in options:
        groups.setdefault(_serialize_spec(_get_model(option)), []).append(option)
    # Building a model takes longer than composing all options, so each distinct one is built only once.
    for users in groups.values():
        methods = {_serialize_spec(option.spec.lora): option.spec.lora for option in users if option.spec}
        model, head = _get_model(users[0])
        errors = check_fit(model, list(methods.values()), head)
        if errors is None:
            line = f"model.name_or_path={model.name_or_path}: its config is not on this disk, so target_modules were not checked"
            for option in users:
                option.add(NOTE, line)
            continue
        errors_by_method = dict(zip(methods, errors, strict=True))
        for option in users:
            assert option.spec is not None
            error = errors_by_method[_serialize_spec(option.spec.lora)]
            for line in getattr(error, "lines", [str(error)]) if error else ():
                # The option is no longer fine: drop the finding without a message.
                option.found = [finding for finding in option.found if finding.line]
                option.add(FAULT, line)


def _get_model(option: Option) -> tuple[ModelSpec, classifier_head.ClassifierHead | None]:
    assert option.spec is not None
    return option.spec.model, classifier_head.get_task_head(option.spec.task)


def _serialize_spec(spec: Any) -> str:
    """A dataclass, or a tuple of dataclasses and None, as a string that can be compared and hashed."""
    values = [asdict(part) if part else None for part in spec] if isinstance(spec, tuple) else asdict(spec)
    return json.dumps(values, sort_keys=True, default=str)


def count_verdicts(results: Sequence[Finding]) -> dict[str, int]:
    """Verdict → number of options whose worst finding it is."""
    worst: dict[str, str] = {}
    for finding in results:
        worst[finding.what] = max(worst.get(finding.what, ""), finding.verdict, key=["", "fine", NOTE, FAULT].index)
    return {verdict: list(worst.values()).count(verdict) for verdict in ("fine", NOTE, FAULT)}


def relativize_path(finding: Finding) -> Finding:
    """The finding with its path relative to the working directory."""
    return replace(finding, where=finding.where.removeprefix(f"{Path.cwd()}/"))
