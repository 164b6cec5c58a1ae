"""The JSON Schema of `hydra/launcher`: options of the launchers that train the cells of a sweep together."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from peftrun.config import paths
from peftrun.config.schema.lora import Positive
from peftrun.config_tools.json_schema import defaults
from peftrun.config_tools.json_schema.values import Schema, allow_interpolation
from peftrun.config_tools.json_schema.yaml_comments import read_keys

GROUP = "hydra/launcher"
OPTIONS: dict[str, Any] = {
    "memory_limit": str | None,
    "max_cells": Positive | None,
    "halving": dict[Literal["min_steps", "factor"], int] | None,
    "address": str | None,
    "num_cpus": Annotated[float, Field(gt=0)] | None,
    "num_gpus": Annotated[float, Field(ge=0)] | None,
    "parallel": Positive | None,
    "max_retries": Annotated[int, Field(ge=0)],
    "init": dict[str, Any],
    "cluster": Literal["slurm", "local", "debug"],
    "executor": dict[str, Any],
}


def build_launcher_schema() -> Schema:
    """The schema of a file of the group. What goes to another library whole takes any key, those that we set described."""
    said = {name: key for path in paths.list_group_files(GROUP) for name, key in read_keys(path).items()}
    properties = {
        name: allow_interpolation(TypeAdapter(kind).json_schema()) | {"description": said[name].comment}
        for name, kind in OPTIONS.items()
    }
    inner = {name.removeprefix("executor."): one.comment for name, one in said.items() if name.startswith("executor.")}
    whole = {
        "type": "object",
        "properties": {name: {"description": text} if text else {} for name, text in inner.items()},
    }
    properties["executor"] = whole | {"description": said["executor"].comment}
    return {
        "type": "object",
        "description": "How the cells of a sweep are run.",
        "properties": {"defaults": defaults.build_group_defaults(GROUP), **properties},
        "additionalProperties": False,
    }
