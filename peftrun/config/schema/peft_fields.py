"""The fields of PEFT's own configs and their types, read from its source, since importing PEFT takes seconds. Light.

The dataclasses of group `lora` hold what is shipped in `conf/lora`; whatever else PEFT's config of the method has may be given beside it.
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
    "it is written from lora.method, the base and the task",
)
OF_THE_MODEL = dict.fromkeys(
    ("num_attention_heads", "num_layers", "num_transformer_submodules", "token_dim"), "PEFT reads it off the base"
)
TOKENIZER = dict.fromkeys(("tokenizer_kwargs", "tokenizer_name_or_path"), "it is the base's own tokenizer")
MEGATRON = dict.fromkeys(("megatron_config", "megatron_core"), "it loads no Megatron layers")
NOT_OFFERED = {  # field → why it cannot be given
    **SET_BY_PEFTRUN,
    **OF_THE_MODEL,
    **TOKENIZER,
    **MEGATRON,
    "arrow_config": "it routes between other adapters, which a run does not load",
    "loftq_config": "it computes LoftQ itself; type lora=loftq",
    "runtime_config": "it is about one machine and is not saved with an adapter",
    "total_step": "it is the run's own number of steps",
}
NEVER_READ = {  # method → fields that PEFT 0.21 takes, saves, and makes nothing of
    "adalora": (
        "r", "alora_invocation_tokens", "alpha_pattern", "corda_config", "ensure_weight_tying", "eva_config", "kasa_config",
        "layer_replication", "lora_bias", "lora_ga_config", "monteclora_config", "qalora_group_size", "rank_pattern",
        "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora", "velora_config",
    ),
    "hira": ("rank_pattern",),
}  # fmt: skip
NARROWER = {("adalora", "init_lora_weights"): bool}  # where PEFT makes something of some values alone


def explain_unsupported(method: str, field: str) -> str | None:
    """Why a field of PEFT's config of this method cannot be given; None if it can, or if PEFT has no such field."""
    if field not in _read_config_fields(method):
        return None
    if field in NEVER_READ.get(method, ()):
        return f"PEFT makes nothing of it in {method}"
    return NOT_OFFERED.get(field)


def get_extra_peft_fields(lora: Any) -> tuple[str, ...]:
    """The fields of a method that were given beside those of its dataclass."""
    return getattr(lora, "BESIDE", ())


def get_accepted_fields(method: str) -> dict[str, Any]:
    """Field → its type, of all that may be given to PEFT's config of a method; empty where PEFT is missing or has no such method."""
    return {
        name: NARROWER.get((method, name), kind)
        for name, kind in _read_config_fields(method).items()
        if not explain_unsupported(method, name)
    }


@cache
def extend_spec_class(owner: type, method: str, names: tuple[str, ...]) -> type:
    """The dataclass of a method with more of PEFT's fields."""
    kinds = get_accepted_fields(method)
    more = {"__annotations__": {name: kinds[name] for name in names}, "BESIDE": names}
    same = {"__module__": owner.__module__, "__doc__": owner.__doc__}
    return dataclass(config=STRICT)(type(owner.__name__, (owner,), more | same))


@cache
def _read_config_fields(method: str) -> dict[str, Any]:
    module = f"peft.tuners.{method}"
    for node in ast.walk(_parse_module(module)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register_peft_method":
            given = {one.arg: one.value for one in node.keywords}
            if getattr(given["name"], "value", "") == method:
                return _collect_fields(module, getattr(given["config_cls"], "id", ""))
    return {}


def _collect_fields(module: str, name: str) -> dict[str, Any]:
    """Those of a class and of the classes that it builds on."""
    home, node = _find_class(module, name)
    if node is None:
        return {}
    inherited = [_collect_fields(home, base.id) for base in node.bases if isinstance(base, ast.Name)]
    own = {
        one.target.id: _resolve_type(home, one)
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not _has_keyword(one, "init", False)
    }
    return {key: kind for found in (*inherited, own) for key, kind in found.items()}


def _resolve_type(module: str, field: ast.AnnAssign) -> Any:
    """The type as PEFT writes it; Any where that is no type of Python's, PEFT's or typing's."""
    try:
        kind = eval(ast.unparse(field.annotation), {"__builtins__": {}}, _AnnotationNames(module))
    except (NameError, TypeError):
        return Any
    return Optional[kind] if _has_keyword(field, "default", None) else kind  # noqa: UP045 (a kind may be any object)


def _has_keyword(field: ast.AnnAssign, argument: str, value: Any) -> bool:
    """Whether a field is made with this argument."""
    given = field.value.keywords if isinstance(field.value, ast.Call) else []
    return any(
        one.arg == argument and isinstance(one.value, ast.Constant) and one.value.value is value for one in given
    )


class _AnnotationNames(dict[str, Any]):
    """What the names in an annotation mean."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __missing__(self, name: str) -> Any:
        home, node = _find_class(self.module, name)
        if node is not None:
            return _build_mapping_type(home, node)
        for one in _parse_module(self.module).body:
            if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == name:
                return eval(ast.unparse(one.value), {"__builtins__": {}}, self)
        for place in (typing, builtins):
            if hasattr(place, name):
                return getattr(place, name)
        raise NameError(name)


def _build_mapping_type(module: str, node: ast.ClassDef) -> Any:
    """A config inside a config, as a mapping of those of its fields that are given; an enumeration as its words."""
    if any(ast.unparse(base).endswith("Enum") for base in node.bases):
        words = [
            one.value.value for one in node.body if isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant)
        ]
        return Literal[tuple(words)]
    kinds = {name: NotRequired[kind] for name, kind in _collect_fields(module, node.name).items()}
    made = TypedDict(node.name, kinds)  # type: ignore[misc]
    setattr(made, "__pydantic_config__", STRICT)  # noqa: B010 (a type to mypy)
    return made


@cache
def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef | None]:
    """The definition of a class that a module has or imports, and the module that holds it."""
    for node in _parse_module(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and any((one.asname or one.name) == name for one in node.names):
            return _find_class(_resolve_import(module, node), name)
    return module, None


def _resolve_import(module: str, node: ast.ImportFrom) -> str:
    """The full name of the module that something is imported from."""
    above = module.split(".")
    kept = len(above) - node.level + (_locate_module(module).name == "__init__.py")
    return ".".join([*above[:kept], node.module or ""]).rstrip(".") if node.level else node.module or ""


@cache
def _parse_module(module: str) -> ast.Module:
    """The source of a module of PEFT; nothing of any other."""
    file = _locate_module(module)
    return ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")


def _locate_module(module: str) -> Path:
    package, *inner = module.split(".")
    found = find_spec("peft") if package == "peft" else None
    path = Path(found.origin).parent.joinpath(*inner) if found and found.origin else Path()
    return path / "__init__.py" if path.is_dir() and inner else path.with_suffix(".py") if inner else path
