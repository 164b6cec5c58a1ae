"""Fields of PEFT's configs and their types, parsed from its source, since importing PEFT takes seconds. Light.

The dataclasses of group `lora` have the fields of `conf/lora`; any other field of PEFT's config of the method may be added on the command line.
"""

import ast
import builtins
import typing
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NotRequired, Optional

from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict  # pydantic's own dependency: it takes typing's from Python 3.12 on

from peftrun.config.schema.lora import STRICT

SET_BY_PEFTRUN = dict.fromkeys(
    ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type"),
    "it is set from lora.method, the base model and the task",
)
OF_THE_MODEL = dict.fromkeys(
    ("num_attention_heads", "num_layers", "num_transformer_submodules", "token_dim"),
    "PEFT reads it from the base model",
)
TOKENIZER = dict.fromkeys(("tokenizer_kwargs", "tokenizer_name_or_path"), "it is the base model's own tokenizer")
MEGATRON = dict.fromkeys(("megatron_config", "megatron_core"), "it loads no Megatron layers")
NOT_OFFERED = {  # field → why it cannot be set
    **SET_BY_PEFTRUN,
    **OF_THE_MODEL,
    **TOKENIZER,
    **MEGATRON,
    "arrow_config": "it routes between other adapters, which a run does not load",
    "loftq_config": "it computes LoftQ itself; type lora=loftq",
    "runtime_config": "it concerns one machine and is not saved with an adapter",
    "total_step": "it is the run's own number of steps",
}
NEVER_READ = {  # method → fields that PEFT 0.21 accepts and saves, but does not use
    "adalora": (
        "r", "alora_invocation_tokens", "alpha_pattern", "corda_config", "ensure_weight_tying", "eva_config", "kasa_config",
        "layer_replication", "lora_bias", "lora_ga_config", "monteclora_config", "qalora_group_size", "rank_pattern",
        "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora", "velora_config",
    ),
    "hira": ("rank_pattern",),
}  # fmt: skip
NARROWER = {
    ("adalora", "init_lora_weights"): bool
}  # types narrower than PEFT's annotation, where it ignores the other values


def explain_unsupported(method: str, field: str) -> str | None:
    """Why a field of PEFT's config of this method cannot be set; None if it can, or if PEFT has no such field."""
    if field not in _read_config_fields(method):
        return None
    if field in NEVER_READ.get(method, ()):
        return f"PEFT does not use it in {method}"
    return NOT_OFFERED.get(field)


def get_extra_peft_fields(lora: Any) -> tuple[str, ...]:
    """Fields of PEFT's config that were set in addition to those of the method's dataclass."""
    return getattr(lora, "BESIDE", ())


def get_accepted_fields(method: str) -> dict[str, Any]:
    """Field → type, of all fields of PEFT's config of a method that may be set; empty if PEFT is missing or has no such method."""
    return {
        name: NARROWER.get((method, name), kind)
        for name, kind in _read_config_fields(method).items()
        if not explain_unsupported(method, name)
    }


def list_config_fields(method: str) -> list[str]:
    """All fields of PEFT's config of a method; empty if PEFT is missing or has no such method."""
    return list(_read_config_fields(method))


@cache
def extend_spec_class(owner: type, method: str, names: tuple[str, ...]) -> type:
    """A subclass of a method's dataclass with the PEFT fields `names` added."""
    types = get_accepted_fields(method)
    added = {"__annotations__": {name: types[name] for name in names}, "BESIDE": names}
    inherited = {"__module__": owner.__module__, "__doc__": owner.__doc__}
    return dataclass(config=STRICT)(type(owner.__name__, (owner,), added | inherited))


@cache
def _read_config_fields(method: str) -> dict[str, Any]:
    """Field → type of PEFT's config of a method: found by its call `register_peft_method(name=…, config_cls=…)`."""
    module = f"peft.tuners.{method}"
    for node in ast.walk(_parse_module(module)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register_peft_method":
            arguments = {keyword.arg: keyword.value for keyword in node.keywords}
            if getattr(arguments["name"], "value", "") == method:
                return _collect_fields(module, getattr(arguments["config_cls"], "id", ""))
    return {}


def _collect_fields(module: str, name: str) -> dict[str, Any]:
    """Field → type of a dataclass in a module of PEFT, with inherited fields."""
    home, node = _find_class(module, name)
    if node is None:
        return {}
    fields: dict[str, Any] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            fields |= _collect_fields(home, base.id)
    for statement in node.body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if not _has_keyword(statement, "init", False):
            fields[statement.target.id] = _resolve_type(home, statement)
    return fields


def _resolve_type(module: str, field: ast.AnnAssign) -> Any:
    """The annotated type; Any if it is neither Python's, PEFT's nor typing's."""
    try:
        annotation = eval(ast.unparse(field.annotation), {"__builtins__": {}}, _AnnotationNames(module))
    except (NameError, TypeError):
        return Any
    # PEFT annotates some fields without None whose default is None.
    return Optional[annotation] if _has_keyword(field, "default", None) else annotation  # noqa: UP045 (may be any object)


def _has_keyword(field: ast.AnnAssign, argument: str, value: Any) -> bool:
    """Whether a field is declared as `field(argument=value)`."""
    keywords = field.value.keywords if isinstance(field.value, ast.Call) else []
    return any(
        keyword.arg == argument and isinstance(keyword.value, ast.Constant) and keyword.value.value is value
        for keyword in keywords
    )


class _AnnotationNames(dict[str, Any]):
    """Namespace of an annotation in a module of PEFT: PEFT's own classes and aliases, then typing, then builtins."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __missing__(self, name: str) -> Any:
        home, node = _find_class(self.module, name)
        if node is not None:
            return _build_mapping_type(home, node)
        for statement in _parse_module(self.module).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:  # an alias
                return eval(ast.unparse(statement.value), {"__builtins__": {}}, self)
        for module in (typing, builtins):
            if hasattr(module, name):
                return getattr(module, name)
        raise NameError(name)


def _build_mapping_type(module: str, node: ast.ClassDef) -> Any:
    """A nested config as a TypedDict whose fields are all optional; an enumeration as a Literal of its values."""
    if any(ast.unparse(base).endswith("Enum") for base in node.bases):
        values = [
            statement.value.value
            for statement in node.body
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        ]
        return Literal[tuple(values)]
    fields = {name: NotRequired[annotation] for name, annotation in _collect_fields(module, node.name).items()}
    mapping_type = TypedDict(node.name, fields)  # type: ignore[misc]
    setattr(mapping_type, "__pydantic_config__", STRICT)  # noqa: B010 (mypy takes it for a type)
    return mapping_type


@cache
def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef | None]:
    """The definition of a class that a module defines or imports, and the module with the definition."""
    for node in _parse_module(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return _find_class(_resolve_import(module, node), name)
    return module, None


def _resolve_import(module: str, node: ast.ImportFrom) -> str:
    """Full name of the module in `from … import …`, which may be relative to `module`."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    # One dot means the own package: the module's parent, or the module itself if it is a package.
    depth = len(parts) - node.level + (_locate_module(module).name == "__init__.py")
    return ".".join([*parts[:depth], node.module or ""]).rstrip(".")


@cache
def _parse_module(module: str) -> ast.Module:
    """The parsed source of a module of PEFT; an empty one for any other module."""
    file = _locate_module(module)
    return ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")


def _locate_module(module: str) -> Path:
    """File of a module of PEFT; a path that is no file for any other module."""
    package, *inner = module.split(".")
    spec = find_spec("peft") if package == "peft" else None
    path = Path(spec.origin).parent.joinpath(*inner) if spec and spec.origin else Path()
    return path / "__init__.py" if path.is_dir() and inner else path.with_suffix(".py") if inner else path
