"""The settings of an experiment with the key of each, and what they say together. Light."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from peftrun.checks.device import SHARDED_QUANTIZATIONS
from peftrun.config import paths, shorthand, yaml_files
from peftrun.config_tools.peer_import import row_keys
from peftrun.config_tools.peer_import.key_rules import EPOCH_SHARES, SHARE
from peftrun.config_tools.peer_import.translation import CARRIED, NO_COUNTERPART, NOT_NEEDED, Translation

PREFERENCES = ("dpo", "orpo", "kto", "reward", "preferences")
STRATEGY = "trainer.eval_strategy"
GENERATIONS = "task.objective.num_generations"
BATCH, ACCUMULATION = "trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps"
NO_ADAPTER = "there is no adapter"
OWN_RATE = "the rate of full fine-tuning"


@dataclass
class Draft:
    """`lines`: the keys of the file. `defaults`: what the tool does where a key is missing; those of the file win."""

    lines: list[Translation]
    defaults: list[Translation]

    @property
    def origins(self) -> dict[str, Translation]:
        """Full key or group → the line that sets it: of several the last."""
        return {target: line for line in [*reversed(self.defaults), *self.lines] for target in line.settings}

    @property
    def settings(self) -> dict[str, Any]:
        """Full key or group → value."""
        return {target: line.settings[target] for target, line in self.origins.items()}

    def get(self, target: str) -> Any:
        """The value of a full key or group; None if nothing sets it."""
        return self.settings.get(target)

    def set(self, target: str, value: Any) -> None:
        """Changes the value of a setting, for the key that sets it."""
        self.origins[target].settings[target] = value

    def drop(self, is_dropped: Callable[[str], bool], verdict: str, note: str) -> bool:
        """Removes settings. A key that has none left gets the verdict. Returns whether there were any."""
        dropped = False
        for line in [*self.lines, *self.defaults]:
            kept = {target: value for target, value in line.settings.items() if not is_dropped(target)}
            if len(kept) < len(line.settings):
                dropped, line.settings = True, kept
                if not kept and line.verdict == CARRIED:
                    line.verdict, line.note = verdict, note
                elif line.verdict == CARRIED:
                    line.note = "; ".join(filter(None, [line.note, note]))
        return dropped

    def drop_defaults(self, target: str) -> None:
        """Removes a setting that no key of the file sets."""
        for line in self.defaults:
            line.settings.pop(target, None)


def settle(draft: Draft) -> None:
    """Makes the settings fit each other, as the notes of the guides say."""
    for rule in (_settle_targets, _settle_preferences, _settle_method, _settle_kto, _settle_generations, _settle_sharding, _settle_validation, _settle_steps, _settle_streaming):  # fmt: skip
        rule(draft)


def _settle_targets(draft: Draft) -> None:
    """axolotl's lora_target_linear includes its lora_target_modules."""
    linear = next((line for line in draft.lines if line.key == "lora_target_linear" and line.value is True), None)
    for line in draft.lines:
        if linear and line.key == "lora_target_modules" and line.settings:
            line.settings, line.verdict, line.note = {}, NOT_NEEDED, "lora_target_linear names every layer"


def _settle_preferences(draft: Draft) -> None:
    if draft.get("task") not in (*PREFERENCES, "grpo"):
        draft.drop(lambda target: target.startswith("task.objective"), NO_COUNTERPART, "the task has no objective")
        if draft.get("task") != "chat":
            draft.drop_defaults("task.loss_on")
        return
    draft.drop("task.loss_on".__eq__, NOT_NEEDED, "the objective says what is trained on")
    if draft.get("task") == "grpo":
        return
    off = ("lora.lora_dropout", "trainer.packing", "trainer.padding_free")
    draft.drop(off.__contains__, NOT_NEEDED, "TRL turns it off with preferences")
    if draft.get("lora") == "none":
        draft.drop(
            lambda target: target == "lora",
            NO_COUNTERPART,
            "preferences train an adapter; full fine-tuning on them has no counterpart",
        )


def _settle_method(draft: Draft) -> None:
    """Keys of another method than the chosen one have no effect."""
    method = draft.get("lora") or shorthand.DEFAULT_METHOD
    if method == "none":
        draft.drop(lambda target: target.startswith("lora."), NOT_NEEDED, NO_ADAPTER)
        return
    known = shorthand.read_option_keys(method)
    for line in draft.defaults:  # the tool's defaults are those of LoRA
        line.settings = {
            target: value
            for target, value in line.settings.items()
            if not target.startswith("lora.") or target.split(".")[1] in known
        }


def _settle_kto(draft: Draft) -> None:
    """KTO compares the rows of a batch, so it needs two."""
    if draft.get("task") == "kto" and draft.get(BATCH) == 1:
        draft.set(BATCH, 2)
        draft.set(ACCUMULATION, max(1, (draft.get(ACCUMULATION) or 1) // 2))
        draft.origins[BATCH].note = "KTO needs 2 rows per batch: the accumulation is halved instead"


def _settle_generations(draft: Draft) -> None:
    """The answers to a prompt must fit into a step of one device; other tools count those of all devices."""
    if draft.get("task") != "grpo":
        return
    default = yaml_files.load_plain(paths.config_dir() / "task" / "grpo.yaml")["objective"]["num_generations"]
    answers, rows = draft.get(GENERATIONS) or default, (draft.get(BATCH) or 1) * (draft.get(ACCUMULATION) or 1)
    if isinstance(answers, int) and rows % answers and ACCUMULATION in draft.origins:
        draft.set(ACCUMULATION, (draft.get(ACCUMULATION) or 1) * (answers // math.gcd(answers, rows)))
        line = draft.origins[GENERATIONS if GENERATIONS in draft.origins else ACCUMULATION]
        line.note = "the accumulation is raised, so that all answers to a prompt are in one step"


def _settle_sharding(draft: Draft) -> None:
    if draft.get("device") == "fsdp" and draft.get("model.quantization") not in SHARDED_QUANTIZATIONS:
        for line in draft.lines:
            if line.settings.get("device") == "fsdp":
                line.settings, line.note = {"device": "ddp"}, "a base model in 8 bits is not sharded: each process has it whole"  # fmt: skip


def _settle_validation(draft: Draft) -> None:
    """A share of the rows becomes their number where the file is on this disk; without validation rows nothing is validated."""
    share, rows = draft.get(SHARE), row_keys.count_rows(draft.settings)
    if isinstance(share, float) and share < 1:
        if rows is None:
            draft.drop((SHARE, STRATEGY).__contains__, NO_COUNTERPART, f"a share of rows that are not on this disk; type {SHARE}=ROWS and trainer.eval_strategy")  # fmt: skip
        else:
            draft.set(SHARE, max(1, round(share * rows)))
    elif share is not None:
        draft.set(SHARE, int(share))
    often = draft.get(EPOCH_SHARES)
    is_share = EPOCH_SHARES in draft.origins and draft.origins[EPOCH_SHARES].key == "evals_per_epoch"
    if is_share and rows is not None:
        steps = rows // ((draft.get(BATCH) or 1) * (draft.get(ACCUMULATION) or 1)) // often
        draft.set(EPOCH_SHARES, max(1, steps))
    if draft.get(SHARE) is None:
        without = (STRATEGY, EPOCH_SHARES, "trainer.load_best_model_at_end", "trainer.early_stopping_patience")  # fmt: skip
        draft.drop(without.__contains__, NOT_NEEDED, f"without {SHARE} nothing is validated during training")
    elif is_share and rows is None:
        draft.drop(EPOCH_SHARES.__eq__, NO_COUNTERPART, "type trainer.eval_steps=STEPS; action=plan prints the steps of an epoch")  # fmt: skip


def _settle_streaming(draft: Draft) -> None:
    if draft.get("task.data.streaming") and draft.get("task.data.num_train_rows") is None:
        note = "type task.data.num_train_rows=ROWS, as many as are read"
        draft.drop("task.data.streaming".__eq__, NO_COUNTERPART, note)


def _settle_steps(draft: Draft) -> None:
    """Intervals without their strategy have no effect."""
    for name in ("eval", "save"):
        strategy = draft.get(f"trainer.{name}_strategy") or ("no" if name == "eval" else "epoch")
        if strategy != "steps":
            draft.drop(f"trainer.{name}_steps".__eq__, NOT_NEEDED, f"{name}_strategy is {strategy}")


def list_verdicts(lines: Iterable[Translation]) -> dict[str, list[Translation]]:
    """Verdict → the lines with it."""
    by_verdict: dict[str, list[Translation]] = {CARRIED: [], NOT_NEEDED: [], NO_COUNTERPART: []}
    for line in lines:
        by_verdict[line.verdict].append(line)
    return by_verdict
