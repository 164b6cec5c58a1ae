"""Number of parameters that a run trains, counted from the files of its base model. Light.

Exact for LoRA and its variants, except where only the loaded model tells: ranks that EVA distributes, experts, biases, an output layer
tied to the embeddings. For other methods it is an upper bound.
"""

import re
from dataclasses import dataclass
from typing import Any

from peftrun.artifacts import classifier_head
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config.schema.lora import LoraSpec, NoAdapter
from peftrun.config.schema.peft_fields import get_extra_peft_fields
from peftrun.config.schema.run import RunSpec

LAYER = re.compile(r"\.(\d+)\.")
OUTPUT_LAYERS = ("lm_head", "embed_out")
WITH_BIAS = ("bert",)  # model types whose only randomly initialized module is one linear classifier with a bias
RANK = 16  # other methods count as a LoRA of this rank on all linear layers


@dataclass(frozen=True)
class ParameterCount:
    """`trained`: updated parameters. `held`: all parameters of the adapter, also frozen ones. `exact`: False for an estimate."""

    trained: int
    held: int
    exact: bool


def estimate_parameters(base: BaseModelInfo, spec: RunSpec) -> ParameterCount:
    """Parameters of a run with its method on its task, including a classifier head and the rows of new tokens."""
    lora, task = spec.lora, spec.task
    rows = _count_new_rows(base, spec)
    if isinstance(lora, NoAdapter):
        is_exact = classifier_head.get_task_head(task) is None and not rows
        return ParameterCount(base.parameters + rows * base.hidden, 0, is_exact)
    if not isinstance(lora, LoraSpec):
        size = RANK * sum(map(sum, base.linears.values()))
        return ParameterCount(size, size, exact=False)
    size, frozen = count_adapter_parameters(base, lora) + rows * base.hidden, 0
    if lora.lora_fa:  # LoRA-FA freezes A, (r, inputs) of each module
        targets = list_target_modules(base, lora).items()
        frozen = sum(_get_rank(name, lora) * inputs for name, (_, inputs) in targets)
    head = classifier_head.get_task_head(task)
    head_size = len(head.labels) * (base.hidden + 1) if head else 0
    # `all-linear` may include a pooler, which only the loaded model tells.
    is_head_exact = head is None or (base.kind in WITH_BIAS and lora.target_modules != "all-linear")
    names = lora.modules_to_save or []  # modules that are trained in full
    sizes = {tensor: size for tensor, size in base.sizes.items() if _matches_module(tensor.rpartition(".")[0], names)}
    modules = {tensor.rpartition(".")[0] for tensor in sizes}
    are_saved_found = all(any(_matches_module(module, [name]) for module in modules) for name in names)
    full = head_size + sum(sizes.values())
    return ParameterCount(
        size - frozen + full, size + full, _is_exact(base, lora) and is_head_exact and are_saved_found
    )


def list_target_modules(base: BaseModelInfo, lora: Any) -> dict[str, tuple[int, int]]:
    """Module → (outputs, inputs) of the target modules of a LoRA; all linear layers for another method."""
    if not isinstance(lora, LoraSpec):
        return base.linears
    candidates = base.linears if _is_all_linear(lora) else base.linears | base.tables
    layers = [lora.layers_to_transform] if isinstance(lora.layers_to_transform, int) else lora.layers_to_transform
    targets = {}
    for name, sizes in candidates.items():
        if lora.exclude_modules is not None and _matches_module(name, lora.exclude_modules):
            continue
        layer = LAYER.search(f".{name}.")
        if layers and (layer is None or int(layer[1]) not in layers):
            continue
        if _is_all_linear(lora) or _matches_module(name, lora.target_modules or []):
            targets[name] = sizes
    return targets


def count_adapter_parameters(base: BaseModelInfo, lora: LoraSpec) -> int:
    """Parameters of a LoRA's matrices: rank × (inputs + outputs) of every target module, and those that its variant adds."""
    matrices, blocks = 0, lora.use_bdlora
    for name, (outputs, inputs) in list_target_modules(base, lora).items():
        rank = _get_rank(name, lora)
        a, b = rank * inputs, rank * outputs  # A: (rank, inputs), B: (outputs, rank)
        if blocks is not None:  # a block-diagonal matrix stores its blocks only
            a //= blocks.nblocks if _matches_module(name, blocks.target_modules_bd_a or []) else 1
            b //= blocks.nblocks if _matches_module(name, blocks.target_modules_bd_b or []) else 1
        # DoRA's magnitude and B's bias: (outputs,) each.
        matrices += a + b + outputs * (int(lora.use_dora) + int(lora.lora_bias))
    indices = lora.trainable_token_indices or []
    tokens = sum(map(len, indices.values())) if isinstance(indices, dict) else len(indices)
    return matrices + tokens * base.hidden  # a trainable token is one embedding row, (hidden,)


def _count_new_rows(base: BaseModelInfo, spec: RunSpec) -> int:
    """Rows of new tokens: in the embeddings, and in an output layer that has weights of its own."""
    outputs = classifier_head.get_task_head(spec.task) is None and not _is_output_tied(base)
    return len(spec.model.new_tokens or []) * (1 + outputs)


def _is_output_tied(base: BaseModelInfo) -> bool:
    # A tied output layer has no tensor of its own in the files.
    return not any(name.endswith(OUTPUT_LAYERS) for name in base.tables)


def _is_exact(base: BaseModelInfo, lora: LoraSpec) -> bool:
    """Whether the count of the matrices needs no loaded model."""
    names = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules or []
    targets_tied_layer = _is_output_tied(base) and any(re.search(r"(lm_head|embed_out)$", name) for name in names)
    is_plain = (
        lora.bias == "none"
        and lora.target_parameters is None
        and lora.init_lora_weights != "eva"
        and not get_extra_peft_fields(lora)
    )
    return not targets_tied_layer and is_plain and lora.target_modules is not None


def _is_all_linear(lora: LoraSpec) -> bool:
    """Whether every linear layer counts as a target. PEFT's default table (target_modules=null) names at most these."""
    return lora.target_modules == "all-linear" or (lora.target_modules is None and lora.target_parameters is None)


def _matches_module(name: str, targets: list[str] | str) -> bool:
    """Whether PEFT's `target_modules` rules select a module: a list holds suffixes of names, a string is a regex over whole names."""
    if isinstance(targets, str):
        # Files of some models lack the prefix that the loaded model has.
        return re.fullmatch(targets, name) is not None or re.fullmatch(targets, f"model.{name}") is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in targets)


def _get_rank(name: str, lora: LoraSpec) -> int:
    ranks = (rank for pattern, rank in (lora.rank_pattern or {}).items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(ranks, lora.r)
