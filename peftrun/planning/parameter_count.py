"""How many parameters a run trains, counted from the files of its base. Light.

Exact for LoRA and its variants, but for what only the loaded model tells: ranks that EVA spreads, experts, biases, an output layer
that is tied to the embeddings. For other methods it is a bound by their size.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peftrun.artifacts import classifier_head
from peftrun.artifacts.base_files import Base
from peftrun.config.schema.lora import LoraSpec
from peftrun.config.schema.peft_fields import beside

LAYER = re.compile(r"\.(\d+)\.")
WITH_BIAS = ("bert",)  # types whose classifier is one layer with a bias and nothing else that is drawn anew
RANK = 16  # another method is taken to be as large as the largest LoRA of this rank


@dataclass(frozen=True)
class Count:
    """`trained`: parameters that are updated. `held`: those of the adapter, also the ones that stay as drawn. `exact`: no estimate."""

    trained: int
    held: int
    exact: bool


def count(base: Base, lora: Any, task: Any) -> Count:
    """What a run with this method on this task trains, its classifier's head counted in."""
    if lora.method == "none":
        return Count(base.parameters, 0, classifier_head.of_task(task) is None)
    if not isinstance(lora, LoraSpec):
        size = RANK * sum(map(sum, base.linears.values()))
        return Count(size, size, exact=False)
    size, frozen = adapter(base, lora), _frozen(base, lora)
    head, known = _head(base, lora, task)
    more, found = _whole(base, lora)
    return Count(size - frozen + head + more, size + head + more, _exact(base, lora) and known and found)


def targets(base: Base, lora: Any) -> dict[str, tuple[int, int]]:
    """Module → its outputs and inputs, of those that a LoRA names; all linear ones for another method."""
    if not isinstance(lora, LoraSpec):
        return base.linears
    asked = base.linears if _all_linear(lora) else base.linears | base.tables
    return {name: sizes for name, sizes in asked.items() if _named(name, lora)}


def adapter(base: Base, lora: LoraSpec) -> int:
    """Parameters of a LoRA's own matrices: rank × (inputs + outputs) of every module that it names, and what its variant adds."""
    found = sum(_matrices(name, sizes, lora) for name, sizes in targets(base, lora).items())
    return found + sum(_tokens(lora)) * base.hidden


def _matrices(name: str, sizes: tuple[int, int], lora: LoraSpec) -> int:
    outputs, inputs = sizes
    rank, blocks = _rank(name, lora), lora.use_bdlora
    first, second = rank * inputs, rank * outputs
    if blocks is not None:
        first //= blocks.nblocks if _matches(name, blocks.target_modules_bd_a or []) else 1
        second //= blocks.nblocks if _matches(name, blocks.target_modules_bd_b or []) else 1
    return first + second + outputs * (int(lora.use_dora) + int(lora.lora_bias))


def _frozen(base: Base, lora: LoraSpec) -> int:
    if not lora.lora_fa:
        return 0
    return sum(_rank(name, lora) * inputs for name, (_, inputs) in targets(base, lora).items())


def _tokens(lora: LoraSpec) -> Iterator[int]:
    asked = lora.trainable_token_indices or []
    yield from map(len, asked.values() if isinstance(asked, dict) else [asked])


def _head(base: Base, lora: LoraSpec, task: Any) -> tuple[int, bool]:
    head = classifier_head.of_task(task)
    if head is None:
        return 0, True
    # whether `all-linear` finds a pooler is the model's own affair
    return len(head.labels) * (base.hidden + 1), base.kind in WITH_BIAS and lora.target_modules != "all-linear"


def _whole(base: Base, lora: LoraSpec) -> tuple[int, bool]:
    """Parameters of the modules that are trained in full, and whether all of them are in the files."""
    asked = lora.modules_to_save or []
    found = {name: size for name, size in base.sizes.items() if _matches(name.rpartition(".")[0], asked)}
    return sum(found.values()), all(any(_matches(name.rpartition(".")[0], [one]) for name in found) for one in asked)


def _exact(base: Base, lora: LoraSpec) -> bool:
    names = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules or []
    tied = any(re.search(r"(lm_head|embed_out)$", name) for name in names) and not any(map(_output, base.tables))
    plain = (
        lora.bias == "none" and lora.target_parameters is None and lora.init_lora_weights != "eva" and not beside(lora)
    )
    return not tied and plain and lora.target_modules is not None


def _output(name: str) -> bool:
    return name.endswith(("lm_head", "embed_out"))


def _named(name: str, lora: LoraSpec) -> bool:
    if lora.exclude_modules is not None and _matches(name, lora.exclude_modules):
        return False
    layer, asked = LAYER.search(f".{name}."), lora.layers_to_transform
    wanted = [asked] if isinstance(asked, int) else asked
    if wanted and (layer is None or int(layer[1]) not in wanted):
        return False
    return _all_linear(lora) or _matches(name, lora.target_modules or [])


def _all_linear(lora: LoraSpec) -> bool:
    """Whether every linear layer is named; what PEFT's own table names is at most that."""
    return lora.target_modules == "all-linear" or (lora.target_modules is None and lora.target_parameters is None)


def _matches(name: str, wanted: list[str] | str) -> bool:
    """A list names modules by their last parts, a text is an expression over whole names, of which files may lack the beginning."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None or re.fullmatch(wanted, f"model.{name}") is not None
    return any(name == one or name.endswith(f".{one}") for one in wanted)


def _rank(name: str, lora: LoraSpec) -> int:
    own = (rank for pattern, rank in (lora.rank_pattern or {}).items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(own, lora.r)
