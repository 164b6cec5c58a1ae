"""How many parameters a run trains, counted from the files of its base. Light.

Exact for LoRA and its variants, but for what only the loaded model tells: ranks that EVA spreads, experts, biases, an output layer
that is tied to the embeddings. For other methods it is a bound by their size.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peftrun.artifacts import classifier_head
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config.schema.lora import LoraSpec
from peftrun.config.schema.peft_fields import get_extra_peft_fields

LAYER = re.compile(r"\.(\d+)\.")
WITH_BIAS = ("bert",)  # types whose classifier is one layer with a bias and nothing else that is drawn anew
RANK = 16  # another method is taken to be as large as the largest LoRA of this rank


@dataclass(frozen=True)
class ParameterCount:
    """`trained`: parameters that are updated. `held`: those of the adapter, also the ones that stay as drawn. `exact`: no estimate."""

    trained: int
    held: int
    exact: bool


def estimate_parameters(base: BaseModelInfo, lora: Any, task: Any) -> ParameterCount:
    """What a run with this method on this task trains, its classifier's head counted in."""
    if lora.method == "none":
        return ParameterCount(base.parameters, 0, classifier_head.get_task_head(task) is None)
    if not isinstance(lora, LoraSpec):
        size = RANK * sum(map(sum, base.linears.values()))
        return ParameterCount(size, size, exact=False)
    size, frozen = count_adapter_parameters(base, lora), _count_frozen(base, lora)
    head, known = _count_head(base, lora, task)
    more, found = _count_saved_modules(base, lora)
    return ParameterCount(size - frozen + head + more, size + head + more, _is_exact(base, lora) and known and found)


def list_target_modules(base: BaseModelInfo, lora: Any) -> dict[str, tuple[int, int]]:
    """Module → its outputs and inputs, of those that a LoRA names; all linear ones for another method."""
    if not isinstance(lora, LoraSpec):
        return base.linears
    asked = base.linears if _is_all_linear(lora) else base.linears | base.tables
    return {name: sizes for name, sizes in asked.items() if _is_target(name, lora)}


def count_adapter_parameters(base: BaseModelInfo, lora: LoraSpec) -> int:
    """Parameters of a LoRA's own matrices: rank × (inputs + outputs) of every module that it names, and what its variant adds."""
    found = sum(_count_matrix_parameters(name, sizes, lora) for name, sizes in list_target_modules(base, lora).items())
    return found + sum(_iter_token_counts(lora)) * base.hidden


def _count_matrix_parameters(name: str, sizes: tuple[int, int], lora: LoraSpec) -> int:
    outputs, inputs = sizes
    rank, blocks = _get_rank(name, lora), lora.use_bdlora
    first, second = rank * inputs, rank * outputs
    if blocks is not None:
        first //= blocks.nblocks if _matches_module(name, blocks.target_modules_bd_a or []) else 1
        second //= blocks.nblocks if _matches_module(name, blocks.target_modules_bd_b or []) else 1
    return first + second + outputs * (int(lora.use_dora) + int(lora.lora_bias))


def _count_frozen(base: BaseModelInfo, lora: LoraSpec) -> int:
    if not lora.lora_fa:
        return 0
    return sum(_get_rank(name, lora) * inputs for name, (_, inputs) in list_target_modules(base, lora).items())


def _iter_token_counts(lora: LoraSpec) -> Iterator[int]:
    asked = lora.trainable_token_indices or []
    yield from map(len, asked.values() if isinstance(asked, dict) else [asked])


def _count_head(base: BaseModelInfo, lora: LoraSpec, task: Any) -> tuple[int, bool]:
    head = classifier_head.get_task_head(task)
    if head is None:
        return 0, True
    # whether `all-linear` finds a pooler is the model's own affair
    return len(head.labels) * (base.hidden + 1), base.kind in WITH_BIAS and lora.target_modules != "all-linear"


def _count_saved_modules(base: BaseModelInfo, lora: LoraSpec) -> tuple[int, bool]:
    """Parameters of the modules that are trained in full, and whether all of them are in the files."""
    asked = lora.modules_to_save or []
    found = {name: size for name, size in base.sizes.items() if _matches_module(name.rpartition(".")[0], asked)}
    return sum(found.values()), all(
        any(_matches_module(name.rpartition(".")[0], [one]) for name in found) for one in asked
    )


def _is_exact(base: BaseModelInfo, lora: LoraSpec) -> bool:
    names = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules or []
    tied = any(re.search(r"(lm_head|embed_out)$", name) for name in names) and not any(
        map(_is_output_layer, base.tables)
    )
    plain = (
        lora.bias == "none"
        and lora.target_parameters is None
        and lora.init_lora_weights != "eva"
        and not get_extra_peft_fields(lora)
    )
    return not tied and plain and lora.target_modules is not None


def _is_output_layer(name: str) -> bool:
    return name.endswith(("lm_head", "embed_out"))


def _is_target(name: str, lora: LoraSpec) -> bool:
    if lora.exclude_modules is not None and _matches_module(name, lora.exclude_modules):
        return False
    layer, asked = LAYER.search(f".{name}."), lora.layers_to_transform
    wanted = [asked] if isinstance(asked, int) else asked
    if wanted and (layer is None or int(layer[1]) not in wanted):
        return False
    return _is_all_linear(lora) or _matches_module(name, lora.target_modules or [])


def _is_all_linear(lora: LoraSpec) -> bool:
    """Whether every linear layer is named; what PEFT's own table names is at most that."""
    return lora.target_modules == "all-linear" or (lora.target_modules is None and lora.target_parameters is None)


def _matches_module(name: str, wanted: list[str] | str) -> bool:
    """A list names modules by their last parts, a text is an expression over whole names, of which files may lack the beginning."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None or re.fullmatch(wanted, f"model.{name}") is not None
    return any(name == one or name.endswith(f".{one}") for one in wanted)


def _get_rank(name: str, lora: LoraSpec) -> int:
    own = (rank for pattern, rank in (lora.rank_pattern or {}).items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(own, lora.r)
