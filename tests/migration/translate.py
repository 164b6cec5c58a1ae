"""Configs of other tools in peftrun's overrides, read off the tables of docs/howto/from-*.md."""

import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

GUIDES = Path(__file__).parents[2] / "docs" / "howto"
TABLE_HEADS = {"key": "mapped", "left out": "left_out"}
CASE = re.compile(r"(?:`([^`]*)`|(others)): (?:`([^`]*)`|(the default))")
NOTHING = ("not needed: ", "no counterpart: ")
BY_HAND = "by hand: "
ROWS = 2000  # of the data set that stands for each of theirs
PREFERENCES = {f"task={name}" for name in ("dpo", "orpo", "kto", "reward")}
Overrides = list[str]


@cache
def tables(tool: str) -> dict[str, dict[str, str]]:
    """`mapped`: key → the cell that says what becomes of it; `left_out`: key → the cell for where it is not there."""
    found: dict[str, dict[str, str]] = {"mapped": {}, "left_out": {}}
    kind = None
    for line in (GUIDES / f"from-{tool}.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            kind = None
        elif cells[0] in TABLE_HEADS and len(cells) == 3:
            kind = TABLE_HEADS[cells[0]]
        elif kind and not cells[0].startswith("---"):
            for key in re.findall(r"`([^`]+)`", cells[0]):
                assert key not in found[kind], f"{key} stands in two rows of the guide for {tool}"
                found[kind][key] = cells[1] if kind == "mapped" else cells[2]
    return found


def cases(cell: str) -> dict[str, str]:
    """Value, or `others` → the overrides for it, of a cell that tells values apart; empty for any other cell."""
    return {match[1] or match[2]: match[3] or "" for match in CASE.finditer(cell)}


def overrides_in(cell: str, value: Any) -> Overrides:
    """What a cell makes of a value. Raises: KeyError: a value that the cell does not know."""
    if cell.startswith(NOTHING):
        return []
    known = cases(cell)
    if known:
        text = known[shown(value)] if shown(value) in known else known["others"]
    else:
        text = re.findall(r"`([^`]+)`", cell)[0]
        assert "VALUE" in text, cell
    return [part.replace("VALUE", shown(value)) for part in shlex.split(text)]


def shown(value: Any) -> str:
    """A value of theirs as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def keys_of(keys: dict[str, Any]) -> dict[str, Any]:
    """Their keys, those of the first source of rows among them as `datasets.path`, …"""
    first = (keys.get("datasets") or [{}])[0]
    return keys | {f"datasets.{key}": value for key, value in first.items()}


def translated(tool: str, keys: dict[str, Any]) -> Overrides:
    """One config of theirs, as what is typed after `peftrun`."""
    mapped, found = tables(tool)["mapped"], ["trainer=epochs"]
    given = keys_of(keys)
    if given.get("lora_target_linear"):
        given.pop("lora_target_modules", None)  # all of them already
    for key, value in given.items():
        by_hand = mapped[key].startswith(BY_HAND)
        found += HAND[tool, key](value, keys) if by_hand else overrides_in(mapped[key], value)
    chosen = {one.partition("=")[0]: one for one in found}
    for key, cell in tables(tool)["left_out"].items():
        default = _alpha(keys) if (tool, key) == ALPHA else re.findall(r"`([^`]+)`", cell)[0]
        chosen.setdefault(default.partition("=")[0], default)
    return settled(chosen)


def settled(found: dict[str, str]) -> Overrides:
    """What the notes of the guides say of keys beside each other."""
    preference = found.get("task") in PREFERENCES
    if preference:
        found.pop("lora.lora_dropout", None)  # TRL turns it off there
        found.pop("trainer.packing", None)
    if found.get("lora") == "lora=none":  # adapters alone learn preferences
        keep = preference
        found = {key: one for key, one in found.items() if not key.startswith("lora") or (keep and key != "lora")}
        found |= {} if keep else {"lora": "lora=none"}
    if found.get("task") == "task=kto" and found["trainer.per_device_train_batch_size"].endswith("=1"):
        steps = int(found["trainer.gradient_accumulation_steps"].partition("=")[2])
        found["trainer.per_device_train_batch_size"] = "trainer.per_device_train_batch_size=2"
        found["trainer.gradient_accumulation_steps"] = f"trainer.gradient_accumulation_steps={steps // 2}"
    if found.get("device") == "device=fsdp" and "model.quantization" in found:
        found["device"] = "device=ddp"
        found.pop("trainer.save_strategy", None)
    return list(found.values())


def _share(value: float, keys: dict[str, Any]) -> Overrides:
    return [f"task.data.num_validation_rows={round(value * ROWS) if value < 1 else int(value)}"] if value else []


def _val_set_size(value: float, keys: dict[str, Any]) -> Overrides:
    often = keys.get("evals_per_epoch")
    return [*_share(value, keys), *(["trainer.eval_strategy=steps"] if value and often != 1 else [])]


def _evals_per_epoch(value: int, keys: dict[str, Any]) -> Overrides:
    steps = ROWS // (keys["micro_batch_size"] * keys["gradient_accumulation_steps"])
    return [f"trainer.eval_steps={steps // value}"] if keys["val_set_size"] else []


def _dataset(value: str, keys: dict[str, Any]) -> Overrides:
    """Names of dataset_info.json: each stands for a file here."""
    alpaca = cases(tables("axolotl")["mapped"]["datasets.type"])["alpaca"]
    first = ["task.data.source=file", "task.data.path=data/rows.jsonl"]
    mixed = ["task.data.mixture={more: {path: data/rows.jsonl, weight: 1.0}}"] if "," in value else []
    return [*first, *mixed, *(shlex.split(alpaca) if keys["stage"] == "sft" else [])]


def _mixer(value: dict[str, float], keys: dict[str, Any]) -> Overrides:
    first, *others = value
    mixed = ", ".join(f"more{i}: {{path: {one}, weight: {value[one]}}}" for i, one in enumerate(others))
    return [
        "task.data.source=hub",
        f"task.data.path={first}",
        *([f"task.data.mixture={{{mixed}}}"] if others else []),
    ]


def _mixture(value: dict[str, Any], keys: dict[str, Any]) -> Overrides:
    first = value["datasets"][0]
    return ["task.data.source=hub", f"task.data.path={first['id']}", f'task.data.split="{first["split"]}"']


def _splits(value: list[str], keys: dict[str, Any]) -> Overrides:
    train, *held_out = value
    return [f"task.data.split={train}", *(f"task.data.test_split={one}" for one in held_out)]


def _report_to(value: str | list[str], keys: dict[str, Any]) -> Overrides:
    one = value if isinstance(value, str) else value[-1]
    return [] if one == "none" else [f"tracker={one}"]


def _special_tokens(value: dict[str, str], keys: dict[str, Any]) -> Overrides:
    tokens = ", ".join(f'{key.removesuffix("_token")}: "{token}"' for key, token in value.items())
    return [f"model.special_tokens={{{tokens}}}"]


def _alpha(keys: dict[str, Any]) -> str:
    return f"lora.lora_alpha={2 * keys.get('lora_rank', 8)}"


HAND: dict[tuple[str, str], Callable[..., Overrides]] = {
    ("axolotl", "datasets"): lambda value, keys: [],  # the keys below it
    ("axolotl", "val_set_size"): _val_set_size,
    ("axolotl", "evals_per_epoch"): _evals_per_epoch,
    ("axolotl", "fsdp"): lambda value, keys: ["device=fsdp", "trainer.save_strategy=no"],
    ("axolotl", "fsdp_config"): lambda value, keys: [],
    ("axolotl", "special_tokens"): _special_tokens,
    ("llama-factory", "dataset"): _dataset,
    ("llama-factory", "val_size"): _share,
    ("trl", "dataset_mixer"): _mixer,
    ("trl", "dataset_mixture"): _mixture,
    ("trl", "dataset_splits"): _splits,
    ("trl", "dataset_configs"): lambda value, keys: [f"task.data.config_name={value[0]}"],
    ("trl", "report_to"): _report_to,
    ("trl", "chat_template"): lambda value, keys: ["model.chat_template=chat_template.jinja"],  # a file with that text
}
ALPHA = ("llama-factory", "lora_alpha")  # a default that is reckoned
