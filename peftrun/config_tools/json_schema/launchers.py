"""The JSON Schema of `hydra/launcher`: options of the launchers that train the cells of a sweep jointly."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from peftrun.config import paths
from peftrun.config.schema.lora import Positive
from peftrun.config_tools.json_schema import defaults
from peftrun.config_tools.json_schema.values import Schema, allow_interpolation
from peftrun.config_tools.json_schema.yaml_comments import read_keys

GROUP = "hydra/launcher"
# Option → type: the launchers have no dataclass.
OPTIONS: dict[str, Any] = {
    "memory_limit": str | None,
    "max_cells": Positive | None,
    "devices": Literal["auto"] | Positive | list[Annotated[int, Field(ge=0)]] | None,
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
    """The schema of a file of the group. `executor` is passed to submitit whole, so it accepts any key."""
    keys = {name: key for path in paths.list_group_files(GROUP) for name, key in read_keys(path).items()}
    properties = {
        name: allow_interpolation(TypeAdapter(option_type).json_schema()) | {"description": keys[name].comment}
        for name, option_type in OPTIONS.items()
    }
    executor_keys = {
        name.removeprefix("executor."): {"description": key.comment} if key.comment else {}
        for name, key in keys.items()
        if name.startswith("executor.")
    }
    properties["executor"] = {
        "type": "object",
        "properties": executor_keys,
        "description": keys["executor"].comment,
    }
    return {
        "type": "object",
        "description": "How the cells of a sweep are run.",
        "properties": {"defaults": defaults.build_group_defaults(GROUP), **properties},
        "additionalProperties": False,
    }
