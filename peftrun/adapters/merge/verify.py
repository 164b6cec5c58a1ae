"""Verifies a merge from the written files: each tensor, each layer, and the logits of the whole model.

Tensors: those that the adapter does not change equal the base model's byte by byte (or rounded once, to another dtype); those that it
changes are PEFT's sum in float32, rounded once. Layers: on hidden states of real text, each merged layer has the output of PEFT's own
forward of the adapter up to float32 rounding, which also detects faults of PEFT's merge. Logits: the distance of the written model from the
adapter on its base model, as a share of the adapter's effect. If every tensor is rounded correctly, that share is the cost of the dtype.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from transformers import AutoConfig

from peftrun.adapters import probes
from peftrun.adapters.layer_walk import LayerOutput, find_device, plain_name
from peftrun.adapters.merge import streaming
from peftrun.adapters.merge.file_check import TensorPair, has_same_form
from peftrun.adapters.trainable_tokens import replace_rows
from peftrun.errors import ProofError
from peftrun.io import blocks, host_memory
from peftrun.io.safetensors_stream import RowBlock, StoredTensor
from peftrun.system import malloc

# Tolerance of float32 sums in another order: shares of a layer's output, and of the adapter's effect on it.
LAYER_NOISE, LAYER_SHARE = 2e-5, 2e-3
LOGIT_NOISE, LOGIT_SHARE = 1e-4, 1e-2  # the same after all layers
NOTABLE_LOSS = 0.1  # share of the adapter's effect: a larger loss to rounding is a warning
IGNORED_CONFIG_KEYS = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")
ADVICE = (
    "the written files are under a .rejected name. This is a fault of peftrun: report it, and merge with PEFT meanwhile"
)


@dataclass
class WrittenModel:
    """The tensors of the base model and of the written model, and the results of comparing them.

    Attributes:
        net: the PEFT model; adapter `name` is active.
        base, merged: parameter name → tensor of the base model, and of the written folder.
        equal: pairs of tensors whose bytes were compared when they were written, and are equal.
        wrong: one line for each tensor or layer that is wrong.
        same: names of tensors whose bytes equal the base model's.
        summed: names of tensors that were compared with PEFT's sum.
        layers: number of layers that were compared with the adapter's forward.
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

    @cached_property
    def device(self) -> torch.device:
        """Where sums are computed: where the adapter is."""
        return find_device(self.net)

    def compare_untouched(self, model: Any) -> None:
        """Compares every tensor that no adapted layer computes: the base model's, or trained in full. `model`: the merged one, without weights."""
        trained, layers = self._list_trained(), self.list_layer_tensors()

        def compare(key: str) -> None:
            written = self.merged[key]
            if key in trained:
                self._compare_sum(key, trained[key])
            elif key not in self.base:
                self.wrong.append(f"{key} is in the merged files and not in the base model")
            elif (self.base[key], written) in self.equal or _has_same_values(self.base[key], written):
                self.same.add(key)
            elif self.base[key].dtype == written.dtype or not _has_same_values(self.base[key], written, rounded=True):
                self.wrong.append(f"{key} is not the base model's, and the adapter does not change it")

        with ThreadPoolExecutor(2) as pool:  # a thread alternates between reading and comparing
            list(pool.map(compare, [key for key in self.merged if key not in layers]))
        needed = {key for key, _ in model.named_parameters(remove_duplicate=False)}
        self.wrong += [f"{key} is not in the merged files" for key in sorted(needed - self.merged.keys())]

    def check_layer(self, computed: LayerOutput) -> None:
        """Compares an adapted layer, its tensors and its output for the first row of the batch; each layer once."""
        path, module, inputs, adapted = computed.path, computed.module, computed.args, computed.output
        if path in self._seen:
            return
        self._seen.add(path)
        layer = module.get_base_layer()
        if computed.plain is not None:
            output = self._compare_rows(path, module, inputs[0][:1])  # (1, T, in) → (1, T, out)
            return self._compare_outputs(path, output, adapted[:1], computed.plain[:1])
        if isinstance(layer, streaming.MERGEABLE_LAYERS):
            inputs, adapted = (inputs[0][:1], *inputs[1:]), adapted[:1]
        plain = layer(*inputs)
        merged = self._compare_whole(path, module, lambda _, value: value.detach().clone())
        return self._compare_outputs(path, torch.func.functional_call(layer, merged, inputs), adapted, plain)

    def compare_unreached(self) -> None:
        """Compares the tensors of adapted layers that no text has reached: of an image encoder, of an expert that was not selected."""
        for path, module in self.net.get_base_model().named_modules():
            if path in self._seen or not isinstance(module, streaming.BaseTunerLayer):
                continue
            if isinstance(module, TrainableTokensLayer):
                self._compare_token_rows(path, module)
            elif streaming.merges_by_rows(module, self.name):
                self._compare_rows(path, module)
            else:
                self._compare_whole(path, module, self._read_base)

    def _compare_whole(
        self, path: str, module: Any, read: Callable[[str, Any], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The parameters of a layer after PEFT's merge, compared with the written ones. `read`: gives the base model's."""
        parameters = module.get_base_layer().named_parameters(recurse=False)
        values = {key: read(plain_name(f"{path}.{key}"), parameter) for key, parameter in parameters}
        merged = streaming.merge_layer(module, path, self.name, values)
        for key, value in merged.items():
            self._compare_sum(plain_name(f"{path}.{key}"), value)
        malloc.release_after_growth()
        return merged

    def _compare_rows(self, path: str, module: Any, inputs: torch.Tensor | None = None) -> torch.Tensor:
        """The same block by block of the weight's rows (out, in). Returns the merged layer's output for `inputs` (1, T, in): (1, T, out)."""
        key, bias = plain_name(f"{path}.weight"), module.get_base_layer().bias
        stored, written = self.base[key], self.merged.get(key)
        fits = written is not None and written.entry.shape == stored.entry.shape

        def compare(block: RowBlock) -> tuple[bool, torch.Tensor]:
            values = stored.rows(*block).read_float(device=self.device)
            value = streaming.merge_rows(module, path, self.name, values, block)
            correct = written is not None and fits and _is_rounding_of(value, written.rows(*block))
            # without inputs a column stands for the outputs, which the caller ignores
            return correct, value[:, 0] if inputs is None else torch.nn.functional.linear(inputs, value)

        compared = blocks.map_blocks(compare, stored.row_blocks())
        malloc.release_after_growth()
        self._record_sum(key, all(correct for correct, _ in compared))
        outputs = torch.cat([output for _, output in compared], dim=-1)  # (1, T, out)
        if bias is None:
            return outputs
        bias_values = self._read_base(plain_name(f"{path}.bias"), bias)  # (out,)
        self._compare_sum(plain_name(f"{path}.bias"), bias_values)
        return outputs + bias_values

    def _compare_token_rows(self, path: str, module: TrainableTokensLayer) -> None:
        """Compares an embedding, or the output layer, of which the adapter trains single rows: every other row is the base model's."""
        key = plain_name(f"{path}.weight")
        stored, written = self.base[key], self.merged.get(key)
        if written is None or written.entry.shape != stored.entry.shape:
            return self._record_sum(key, correct=False)
        for block in stored.row_blocks():
            value = replace_rows(module, self.name, stored.rows(*block).read_float(), block).to(written.dtype)
            if not _has_equal_bits(value.reshape(-1), written.rows(*block).read_stored().reshape(-1)):
                return self._record_sum(key, correct=False)
        return self._record_sum(key, correct=True)

    def _compare_outputs(self, path: str, merged: torch.Tensor, adapted: torch.Tensor, plain: torch.Tensor) -> None:
        """Compares a layer's output after the merge with the adapter's; `plain`: the base layer's, all (1, T, out)."""
        error, effect = _l2_norm(merged - adapted), _l2_norm(adapted - plain)
        self.layers += 1
        self.largest_layer_error = max(self.largest_layer_error, error / (effect or math.inf))
        if not error <= LAYER_SHARE * effect + LAYER_NOISE * (_l2_norm(adapted) + _l2_norm(plain)):
            self.wrong.append(
                f"{path} answers otherwise merged than adapted: ‖error‖ {error:.3g}, ‖effect of the adapter‖ {effect:.3g}"
            )

    def _read_base(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """The base model's parameter: a copy of `value`, or read from the files if that is on the meta device."""
        return self.base[key].read_float(device=self.device) if value.is_meta else value.detach().clone()

    def _compare_sum(self, key: str, value: torch.Tensor) -> None:
        """Compares a written tensor with the sum in float32."""
        written = self.merged.get(key)
        fits = written is not None and written.entry.shape == tuple(value.shape)
        self._record_sum(key, written is not None and fits and _is_rounding_of(value, written))

    def _record_sum(self, key: str, correct: bool) -> None:
        written = self.merged.get(key)
        self.summed.add(key)
        if written is None:
            self.wrong.append(f"{key}, which the adapter changes, is not in the merged files")
        elif not correct:
            dtype = str(written.dtype).removeprefix("torch.")
            self.wrong.append(f"{key} is not the sum of base model and adapter, rounded once to {dtype}")

    def base_or_written(self) -> dict[str, StoredTensor]:
        """The base model's tensors; unchanged ones from the written files, since all their bytes are compared anyway."""
        changed = self._list_trained().keys() | self.list_layer_tensors()
        return self.base | {
            key: tensor
            for key, tensor in self.merged.items()
            if key in self.base and key not in changed and has_same_form(self.base[key], tensor)
        }

    def _list_trained(self) -> dict[str, torch.Tensor]:
        """Parameters that the adapter has in full: modules_to_save, trained biases."""
        part = f".modules_to_save.{self.name}."
        parameters = self.net.get_base_model().named_parameters()
        return {plain_name(key.replace(part, ".")): value for key, value in parameters if not value.is_meta}

    def list_layer_tensors(self) -> set[str]:
        """Names of the base model's tensors in adapted layers."""
        return {
            plain_name(f"{path}.{key}")
            for path, module in self.net.get_base_model().named_modules()
            if isinstance(module, streaming.BaseTunerLayer)
            for key, _ in module.get_base_layer().named_parameters(recurse=False)
        }


def check_config(net: Any, folder: Path, trust_remote_code: bool) -> None:
    """Raises: ProofError: the written config differs from that of the model that was merged."""
    written = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).to_dict()
    expected = net.get_base_model().config.to_dict()
    keys = sorted({*written, *expected} - {*IGNORED_CONFIG_KEYS})
    different = [key for key in keys if written.get(key) != expected.get(key)]
    if different:
        raise ProofError(f"the merged model's config.json is not the base model's: {', '.join(different)}; {ADVICE}")


def compare_logits(adapted: torch.Tensor, merged: torch.Tensor, plain: torch.Tensor, dtype: str) -> dict[str, Any]:
    """Distance of the written model's logits (tokens, vocabulary) from the adapter's on its base model, both computed in float32.

    Args: plain: the base model's, for the first tokens only. dtype: of the written tensors.
    Raises: ProofError: a logit is not finite; or the files are float32 and differ by more than its rounding.
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
            f"the merged model is not the adapter on its base model: its logits are NaN or infinite, since some weights are beyond the range of {dtype}; "
            "the written files are under a .rejected name. Type action.dtype=bfloat16, or float32",
            facts={"merge": figures},
        )
    if dtype == "float32" and error > limit:
        raise ProofError(
            f"the merged model is not the adapter on its base model: max |Δlogit| {error:.3g}, where the adapter's own effect is "
            f"{effect:.3g} and {limit:.2g} is allowed; {ADVICE}",
            facts={"merge": figures},
        )
    return figures | {
        "max_logit_difference_from_base": probes.compare_logits(plain, merged[: len(plain)])["max_logit_difference"]
    }


def check_written(written: WrittenModel) -> dict[str, Any]:
    """Figures of the comparison of tensors and layers, after the forward passes. Raises: ProofError: one of them is wrong."""
    written.compare_unreached()
    figures = {
        "tensors": len(written.merged), "unchanged": len(written.same), "summed": len(written.summed),
        "rounded": len(written.merged) - len(written.same) - len(written.summed),
        "layers": written.layers, "largest_layer_error": written.largest_layer_error,
    }  # fmt: skip
    if written.wrong:
        more = f" (and {len(written.wrong) - 1} more)" if len(written.wrong) > 1 else ""
        raise ProofError(
            f"the merged files are not the adapter on its base model: {written.wrong[0]}{more}; {ADVICE}",
            facts={"merge": figures | {"wrong": written.wrong}},
        )
    return figures


def _has_same_values(stored: StoredTensor, written: StoredTensor, *, rounded: bool = False) -> bool:
    """Whether two tensors have the same bytes, or with `rounded` the same values once `stored` is rounded to the dtype of `written`."""
    if stored.entry.shape != written.entry.shape or (stored.dtype != written.dtype and not rounded):
        return False
    pairs = zip(stored.pieces(), written.pieces(), strict=True)  # flat
    return all(_has_equal_bits(a.float().to(written.dtype) if rounded else a, b) for a, b in pairs)


def _is_rounding_of(value: torch.Tensor, written: StoredTensor) -> bool:
    """Whether `written` has the float32 values `value`, rounded once to its dtype.

    A sum in another order moves a value by a few units of float32, and so perhaps to the neighbouring number of the dtype, which is accepted.
    """
    flat, largest, begin = value.detach().reshape(-1), None, 0
    for piece in written.pieces():  # flat
        expected = flat[begin : begin + len(piece)]
        begin += len(piece)
        if _has_equal_bits(host_memory.copy_to_host(expected.to(piece.dtype)), piece):
            continue
        largest, expected = flat.abs().max().cpu() if largest is None else largest, expected.cpu()
        exact, info = torch.finfo(torch.float32).eps, torch.finfo(piece.dtype)
        allowed = (info.eps / 2 + 4 * exact) * expected.abs() + 4 * exact * largest + info.tiny * info.eps
        if not bool(((piece.float() - expected).abs() <= allowed).all()):
            return False
    return True


def _has_equal_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether flat tensors of the same dtype have the same bytes, so that -0 and 0 differ and NaN equals itself. By numpy, in this thread only."""
    pair = [values.contiguous().view(torch.uint8).numpy() for values in (first, second)]
    if len(pair[0]) % 8 == 0:
        pair = [values.view(np.uint64) for values in pair]
    return bool(np.array_equal(*pair))


def _l2_norm(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values.float()))


def _root_mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())
