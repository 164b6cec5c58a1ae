"""Fields and types of a library's dataclasses, parsed from its source, since importing the library takes seconds. Light."""

import ast
import builtins
import typing
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic's own dependency: it takes typing's from Python 3.12 on

from peftrun.config.schema.lora import STRICT

LIBRARIES = ("peft", "transformers", "trl")


@cache
def read_fields(module: str, name: str) -> dict[str, Any]:
    """Field → type of a dataclass in a module of a library, with inherited fields; empty if there is no such class."""
    home, node = _find_class(module, name)
    if node is None:
        return {}
    fields: dict[str, Any] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            fields |= read_fields(home, base.id)
    for statement in node.body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if not _has_keyword(statement, "init", False) and not ast.unparse(statement.annotation).startswith("ClassVar"):
            fields[statement.target.id] = _resolve_type(home, statement)
    return fields


def _resolve_type(module: str, field: ast.AnnAssign) -> Any:
    """The annotated type; Any if it is neither Python's, the library's nor typing's."""
    try:
        annotation = eval(ast.unparse(field.annotation), {"__builtins__": {}}, _AnnotationNames(module))
    except (NameError, TypeError):
        return Any
    # Some fields are annotated without None, and their default is None.
    return annotation | None if _has_keyword(field, "default", None) else annotation


def _has_keyword(field: ast.AnnAssign, argument: str, value: Any) -> bool:
    """Whether a field is declared as `field(argument=value)`."""
    keywords = field.value.keywords if isinstance(field.value, ast.Call) else []
    return any(
        keyword.arg == argument and isinstance(keyword.value, ast.Constant) and keyword.value.value is value
        for keyword in keywords
    )


class _AnnotationNames(dict[str, Any]):
    """Namespace of an annotation in a module of a library: its own classes and aliases, then typing, then builtins."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __missing__(self, name: str) -> Any:
        home, node = _find_class(self.module, name)
        if node is not None:
            return _build_mapping_type(home, node)
        for statement in parse_module(self.module).body:
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
    return build_mapping_type(node.name, read_fields(module, node.name))


def build_mapping_type(name: str, types: dict[str, Any]) -> Any:
    """The type of a mapping that may have these keys, and no others."""
    mapping_type = TypedDict(name, {key: NotRequired[kind] for key, kind in types.items()})  # type: ignore[misc]
    setattr(mapping_type, "__pydantic_config__", STRICT)  # noqa: B010 (mypy takes it for a type)
    return mapping_type


@cache
def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef | None]:
    """The definition of a class that a module defines or imports, and the module with the definition."""
    # At any depth, since transformers imports its public names below `if TYPE_CHECKING`.
    for node in ast.walk(parse_module(module)):
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
def parse_module(module: str) -> ast.Module:
    """The parsed source of a module of a library; an empty one for any other module."""
    file = _locate_module(module)
    return ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")


def _locate_module(module: str) -> Path:
    """File of a module of a library; a path that is no file for any other module."""
    package, *inner = module.split(".")
    spec = find_spec(package) if package in LIBRARIES else None
    path = Path(spec.origin).parent.joinpath(*inner) if spec and spec.origin else Path()
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
