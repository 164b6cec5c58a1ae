"""One knob, one reader: a config field that nothing reads fails here."""

import ast
import dataclasses
import inspect
from functools import cache
from pathlib import Path
from typing import get_args

from cases import cases
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, SFTConfig
from trl.experimental.orpo import ORPOConfig

import peftrun
from peftrun.adapters.attach import PEFTRUN_FIELDS
from peftrun.config.schema import actions as action_specs
from peftrun.config.schema import lora as lora_methods
from peftrun.config.schema import objectives, peft_methods, weight_update_methods
from peftrun.config.schema import run as schema
from peftrun.config.schema import trackers as tracker_specs
from peftrun.config_tools.json_schema.library_help import NESTED_CONFIGS
from peftrun.training.preference_trainer import OWN_FIELDS

PACKAGE = Path(peftrun.__file__).parent
# Groups that are handed whole to a library: their fields must be that library's own.
METHODS = {
    get_args(kind.__annotations__["method"])[0]: kind
    for module in (lora_methods, weight_update_methods, peft_methods)
    for _, kind in inspect.getmembers(module, dataclasses.is_dataclass)
    if get_args(kind.__annotations__.get("method"))
}
METHODS.pop("none")
HANDED_WHOLE = {schema.TrainerSpec: SFTConfig}
HANDED_WHOLE |= {kind: PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())] for name, kind in METHODS.items()}
HANDED_WHOLE |= {
    objectives.DpoObjective: DPOConfig,
    objectives.KtoObjective: KTOConfig,
    objectives.OrpoObjective: ORPOConfig,
    objectives.RewardObjective: RewardConfig,
    objectives.GrpoObjective: GRPOConfig,
}
HANDED_WHOLE |= NESTED_CONFIGS
# These only check, or only show.
NO_READERS = {
    "config/schema/run.py",
    "config/schema/actions.py",
    "checks/cross_group.py",
    "checks/actions.py",
    "checks/methods.py",
    "checks/preferences.py",
    "checks/tasks.py",
    "checks/device.py",
    "checks/trackers.py",
    "config/schema/trackers.py",
    "config/values.py",
    "checks/validation.py",
}


def specs() -> list[type]:
    found = [
        item
        for one in (schema, action_specs, tracker_specs)
        for _, item in inspect.getmembers(one, dataclasses.is_dataclass)
    ]
    return list(dict.fromkeys(found))


@cache
def fields_read() -> set[str]:
    """Every attribute name that some module reads."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).as_posix() not in NO_READERS:
            tree = ast.parse(path.read_text())
            found |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            }
    return found


def test_there_are_specs_to_look_at():
    assert len(specs()) >= 13


# Read as written while a configuration is composed, before there are types: see config/template_params.py and its tests.
COMPOSED = (schema.TemplateParamSpec,)


@cases("spec", [s for s in specs() if s not in (*HANDED_WHOLE, *COMPOSED)], ids=lambda spec: spec.__name__)
def test_every_field_is_read(spec):
    unread = {field.name for field in dataclasses.fields(spec)} - fields_read() - {"method"}
    assert not unread, f"nothing reads {spec.__name__}.{unread}"


@cases("spec", list(HANDED_WHOLE), ids=lambda spec: spec.__name__)
def test_fields_of_groups_handed_whole_are_the_librarys(spec):
    names = {field.name for field in dataclasses.fields(spec)} - {
        *PEFTRUN_FIELDS,
        *OWN_FIELDS,
        "early_stopping_patience",
        "arguments",
    }
    assert names <= {field.name for field in dataclasses.fields(HANDED_WHOLE[spec])}


def test_groups_are_handed_over_in_one_place_each():
    calls = [
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("LoraConfig", "SFTConfig")
    ]
    assert calls == ["sft_trainer.py"]


def test_our_own_fields_of_a_method_are_read():
    assert set(PEFTRUN_FIELDS) - {"method"} <= fields_read() | {"calibration_rows"}
    assert {field.name for field in dataclasses.fields(lora_methods.LoraSpec)} >= set(PEFTRUN_FIELDS)
