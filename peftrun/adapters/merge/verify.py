"""The proof of a merge, from the files that were written: each tensor, each layer, and the answers of the whole.

Tensors: what the adapter does not touch is the base's, byte by byte (or rounded once, where another dtype was asked for); what it changes
is PEFT's sum in float32, rounded once. Layers: on the hidden states of real text, each merged layer answers as PEFT's own forward of the
adapter does, up to the arithmetic of float32, so that a fault of the merge itself is found too. Answers: how far the written model is from
the adapter on its base, as a share of what the adapter does. Where every tensor is rounded right, that share is what the dtype costs.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from peftrun.adapters import probes
from peftrun.adapters.layer_walk import LayerAnswer, plain_name
from peftrun.adapters.merge import streaming
from peftrun.adapters.merge.file_check import TensorPair, has_same_form
from peftrun.errors import ProofError
from peftrun.io import blocks
from peftrun.io.safetensors_stream import RowBlock, StoredTensor
from peftrun.system import malloc

# Of a layer's own answer, and of what the adapter adds to it: what float32 sums in another order may differ by.
LAYER_NOISE, LAYER_SHARE = 2e-5, 2e-3
LOGIT_NOISE, LOGIT_SHARE = 1e-4, 1e-2  # the same after all layers
NOTABLE_LOSS = 0.1  # share of the adapter's effect whose loss to rounding is said report_changes
IGNORED_CONFIG_KEYS = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")
ADVICE = "what was written is kept under a .rejected name. This is a fault of peftrun: report it, and merge with PEFT meanwhile"


@dataclass
class WrittenModel:
    """The tensors of a merge, on both sides, and what has been compared of them.

    Attributes:
        net: the PEFT model; adapter `name` is active.
        base, merged: the tensors of the base and of the written folder, by the model's names of parameters.
        equal: pairs of them whose bytes were compared when they were written, and are the same.
        wrong: what was found, one line a tensor or layer.
        same: names of tensors whose bytes are the base's.
        summed: names of tensors that were compared with PEFT's sum.
    """

    net: Any
    name: str
    base: dict[str, StoredTensor]
    merged: dict[str, StoredTensor]
    equal: set[TensorPair] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    same: set[str] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)
    layers: int = 0
    largest_layer_error: float = 0.0
    _seen: set[str] = field(default_factory=set)

    def compare_untouched(self, model: Any) -> None:
        """Every tensor that no layer of the adapter computes: the base's, or trained and saved whole. `model`: the merged one, without weights."""
        own, layers = self._own(), self.list_layer_tensors()
        with ThreadPoolExecutor(2) as pool:  # reading and comparing each leave half of a processor idle
            list(
                pool.map(
                    lambda key: self._compare_untouched(key, own), [key for key in self.merged if key not in layers]
                )
            )
        needed = {key for key, _ in model.named_parameters(remove_duplicate=False)}
        self.wrong += [f"{key} is not in the merged files" for key in sorted(needed - self.merged.keys())]

    def _compare_untouched(self, key: str, own: dict[str, torch.Tensor]) -> None:
        written = self.merged[key]
        if key in own:
            self._compare_sum(key, own[key])
        elif key not in self.base:
            self.wrong.append(f"{key} is in the merged files and not in the base")
        elif (self.base[key], written) in self.equal or _has_same_bytes(self.base[key], written):
            self.same.add(key)
        elif self.base[key].dtype == written.dtype or not _is_rounded(self.base[key], written):
            self.wrong.append(f"{key} is not the base's, and the adapter does not change it")

    def check_layer(self, one: LayerAnswer) -> None:
        """Compares one adapted layer, once it has answered."""
        if one.path in self._seen:
            return
        self._seen.add(one.path)
        layer = one.module.get_base_layer()
        if one.plain is not None:
            answer = self._compare_rows(one.path, one.module, one.args[0][:1])
            return self._compare_answers(one.path, answer, one.output[:1], one.plain[:1])
        batched = isinstance(layer, streaming.MERGEABLE_LAYERS)
        few, adapted = ((one.args[0][:1], *one.args[1:]), one.output[:1]) if batched else (one.args, one.output)
        plain = layer(*few)
        merged = self._compare_whole(one.path, one.module, lambda _, value: value.detach().clone())
        return self._compare_answers(one.path, torch.func.functional_call(layer, merged, few), adapted, plain)

    def compare_unreached(self) -> None:
        """The tensors of adapted layers to which no text has come: of a tower for images, of an expert that was not chosen."""
        for path, module in self.net.get_base_model().named_modules():
            if path in self._seen or not isinstance(module, streaming.BaseTunerLayer):
                continue
            if streaming.merges_by_rows(module, self.name):
                self._compare_rows(path, module)
            else:
                self._compare_whole(path, module, self._read_base)

    def _compare_whole(
        self, path: str, module: Any, read: Callable[[str, Any], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Compares every parameter of a layer; what they are after PEFT's merge. `read`: gives the base's."""
        named = module.get_base_layer().named_parameters(recurse=False)
        values = {key: read(plain_name(f"{path}.{key}"), one) for key, one in named}
        merged = streaming.merge_layer(module, path, self.name, values)
        for key, value in merged.items():
            self._compare_sum(plain_name(f"{path}.{key}"), value)
        malloc.release_after_growth()
        return merged

    def _compare_rows(self, path: str, module: Any, inputs: torch.Tensor | None = None) -> torch.Tensor:
        """The same, some rows at a time. What the merged layer answers to `inputs`."""
        key, bias = plain_name(f"{path}.weight"), module.get_base_layer().bias
        stored, written = self.base[key], self.merged.get(key)
        fits = written is not None and written.entry.shape == stored.entry.shape

        def compare(block: RowBlock) -> tuple[bool, torch.Tensor]:
            value = streaming.merge_rows(module, path, self.name, stored.rows(*block).read_float(), block)
            right = written is not None and fits and _is_rounding_of(value, written.rows(*block))
            return right, value[:, 0] if inputs is None else torch.nn.functional.linear(inputs, value)

        compared = blocks.map_blocks(compare, stored.row_blocks())
        self._note_sum(key, all(right for right, _ in compared))
        answer = torch.cat([one for _, one in compared], dim=-1)
        if bias is None:
            return answer
        offset = self._read_base(plain_name(f"{path}.bias"), bias)
        self._compare_sum(plain_name(f"{path}.bias"), offset)
        return answer + offset

    def _compare_answers(self, path: str, answer: torch.Tensor, adapted: torch.Tensor, plain: torch.Tensor) -> None:
        """What a layer answers merged, and adapted; `plain`: what the base's answers."""
        error, effect = _l2_norm(answer - adapted), _l2_norm(adapted - plain)
        self.layers += 1
        self.largest_layer_error = max(self.largest_layer_error, error / (effect or math.inf))
        if not error <= LAYER_SHARE * effect + LAYER_NOISE * (_l2_norm(adapted) + _l2_norm(plain)):
            self.wrong.append(
                f"{path} answers otherwise merged than adapted: ‖error‖ {error:.3g}, ‖effect of the adapter‖ {effect:.3g}"
            )

    def _read_base(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """The base's parameter, from its file or as it is in memory."""
        return self.base[key].read_float() if value.is_meta else value.detach().clone()

    def _compare_sum(self, key: str, value: torch.Tensor) -> None:
        """Compares what was written with the sum, in float32."""
        written = self.merged.get(key)
        fits = written is not None and written.entry.shape == tuple(value.shape)
        self._note_sum(key, written is not None and fits and _is_rounding_of(value, written))

    def _note_sum(self, key: str, right: bool) -> None:
        written = self.merged.get(key)
        self.summed.add(key)
        if written is None:
            self.wrong.append(f"{key}, which the adapter changes, is not in the merged files")
        elif not right:
            self.wrong.append(f"{key} is not the sum of base and adapter, rounded once to {_dtype_name(written)}")

    def base_or_written(self) -> dict[str, StoredTensor]:
        """The base's tensors, those that the adapter does not change from the written files: every byte of them is compared anyway."""
        changed = self._own().keys() | self.list_layer_tensors()
        return self.base | {
            key: one
            for key, one in self.merged.items()
            if key in self.base and key not in changed and has_same_form(self.base[key], one)
        }

    def _own(self) -> dict[str, torch.Tensor]:
        """Parameters that the adapter holds whole: modules_to_save, trained biases."""
        named = self.net.get_base_model().named_parameters()
        mark = f".modules_to_save.{self.name}."
        return {plain_name(key.replace(mark, ".")): one for key, one in named if not one.is_meta}

    def list_layer_tensors(self) -> set[str]:
        modules = self.net.get_base_model().named_modules()
        return {
            plain_name(f"{path}.{key}")
            for path, module in modules
            if isinstance(module, streaming.BaseTunerLayer)
            for key, _ in module.get_base_layer().named_parameters(recurse=False)
        }


def check_config(net: Any, folder: Path, trust_remote_code: bool) -> None:
    """Raises: ProofError: the written config describes another model than the one that was merged."""
    found = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).to_dict()
    wanted = net.get_base_model().config.to_dict()
    unlike = [key for key in sorted({*found, *wanted} - {*IGNORED_CONFIG_KEYS}) if found.get(key) != wanted.get(key)]
    if unlike:
        raise ProofError(f"the merged model's config.json is not the base's: {', '.join(unlike)}; {ADVICE}")


def compare_logits(adapted: torch.Tensor, merged: torch.Tensor, plain: torch.Tensor, dtype: str) -> dict[str, Any]:
    """How far the written model's logits are from the adapter's on its base, each computed in float32.

    Args: plain: the base alone, at the first tokens of the others. dtype: what was written.
    Raises: ProofError: a logit is not finite; or the files are float32 and farther off than its arithmetic explains.
    """
    effect = (plain - adapted[: len(plain)]).abs().max().item()
    figures: dict[str, Any] = {**probes.compare_logits(adapted, merged), "effect": effect}
    error = figures["max_logit_difference"]
    rms, rms_effect = (
        _root_mean_square(merged[: len(plain)] - adapted[: len(plain)]),
        _root_mean_square(adapted[: len(plain)] - plain),
    )
    figures["share_of_effect"] = rms / rms_effect if rms_effect else 0.0
    limit = LOGIT_SHARE * effect + LOGIT_NOISE * adapted.abs().max().item()
    if dtype == "float32":
        figures["tolerance"] = limit
    if not math.isfinite(error):
        raise ProofError(
            f"the merged model is not the adapter on its base: it answers with logits that are no finite numbers, since some weights are beyond "
            f"what {dtype} can hold; what was written is kept under a .rejected name. Type action.dtype=bfloat16, or float32",
            facts={"merge": figures},
        )
    if dtype == "float32" and error > limit:
        raise ProofError(
            f"the merged model is not the adapter on its base: max |Δlogit| {error:.3g}, where the adapter's own effect is "
            f"{effect:.3g} and {limit:.2g} is allowed; {ADVICE}",
            facts={"merge": figures},
        )
    return figures | {
        "max_logit_difference_from_base": probes.compare_logits(plain, merged[: len(plain)])["max_logit_difference"]
    }


def check_written(written: WrittenModel) -> dict[str, Any]:
    """Figures of the comparison of tensors and layers, once texts have passed. Raises: ProofError: one of them is wrong."""
    written.compare_unreached()
    figures = {
        "tensors": len(written.merged), "unchanged": len(written.same), "summed": len(written.summed),
        "rounded": len(written.merged) - len(written.same) - len(written.summed),
        "layers": written.layers, "largest_layer_error": written.largest_layer_error,
    }  # fmt: skip
    if written.wrong:
        more = f" (and {len(written.wrong) - 1} more)" if len(written.wrong) > 1 else ""
        raise ProofError(
            f"the merged files are not the adapter on its base: {written.wrong[0]}{more}; {ADVICE}",
            facts={"merge": figures | {"wrong": written.wrong}},
        )
    return figures


def _has_same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    return has_same_form(one, other) and all(
        _has_equal_bits(a, b) for a, b in zip(one.pieces(), other.pieces(), strict=True)
    )


def _is_rounded(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether `other` holds the values of `one`, rounded once to its own dtype."""
    if one.entry.shape != other.entry.shape:
        return False
    pairs = zip(one.pieces(), other.pieces(), strict=True)
    return all(_has_equal_bits(a.float().to(other.dtype), b) for a, b in pairs)


def _is_rounding_of(value: torch.Tensor, written: StoredTensor) -> bool:
    """Whether float32 values, rounded to the dtype that was written, are what was written.

    The sum may have been taken in another order, which moves a value by a few units of float32 and so to the next number of the dtype.
    """
    flat, largest, place = value.detach().reshape(-1), None, 0
    for part in written.pieces():
        wanted = flat[place : place + len(part)]
        place += len(part)
        if _has_equal_bits(wanted.to(part.dtype), part):
            continue
        largest = flat.abs().max() if largest is None else largest
        exact, info = torch.finfo(torch.float32).eps, torch.finfo(part.dtype)
        allowed = (info.eps / 2 + 4 * exact) * wanted.abs() + 4 * exact * largest + info.tiny * info.eps
        if not bool(((part.float() - wanted).abs() <= allowed).all()):
            return False
    return True


def _has_equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether flat tensors of one dtype have the same bytes, so that -0 and 0 differ and NaN equals itself; in this thread alone."""
    pair = [values.contiguous().view(torch.uint8).numpy() for values in (one, other)]
    if len(pair[0]) % 8 == 0:
        pair = [values.view(np.uint64) for values in pair]
    return bool(np.array_equal(*pair))


def _l2_norm(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values.float()))


def _root_mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def _dtype_name(stored: StoredTensor) -> str:
    return str(stored.dtype).removeprefix("torch.")
