"""What one training takes of memory, estimated from the files of its base: its parts, and its height. Light.

While the base is loaded: IMPORTED, the base, and its files too where their dtype is not the one it is held in.
While it is trained: PROCESS, the base, the adapter (float32) with gradients and the optimiser's state, and for each token
    of a batch and each layer what the backward pass needs, with every row as long as the longest:
    2 × hidden   what the two norms read, in float32
    attention    queries, keys, values and answers; by plain products also the scores, of each head and each token of the row,
                 in float32 and in the weights' dtype
    3 × inner    gate, its activation, up
    inputs       of the layers that the adapter stands on, in float32: copies where the base is in another dtype; and what A makes of each.
With checkpointed activations: the inputs of all layers, and the rest for one layer at a time.

HOLES: what stays unused in the heap of a CPU run. C libraries of the GNU project before 2.38 cannot put an aligned block into
a hole of its own size, so what a layer needs for a moment leaves holes that grow with all layers, with checkpointed activations as
without: measured 20 kB a token and layer of SmolLM2-135M in bfloat16, 34 kB in float32, here as a multiple of `inner` bytes. Not for GPUs,
whose allocator is torch's own.

Logits count where something is learned. Held-out rows, measured in two bytes on a CPU, take the output layer once more for each row of a
batch: torch multiplies the last position of each row as matrices of their own, and what was free after training is too full of holes for them.

Measured on SmolLM2-135M on a CPU: benchmarks/results/memory_estimate.md. Nothing of it is measured on a GPU, where the process takes none of the GPU's.
"""

from dataclasses import asdict, dataclass
from typing import Any

from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config.schema.lora import LoraSpec
from peftrun.config.schema.run import RunSpec
from peftrun.planning import parameter_count

IMPORTED = 570_000_000  # once the libraries are imported
PROCESS = 650_000_000  # with a tokenizer, rows, and what a training step imports and compiles
STATE = {"sgd": 0, "adafactor": 0, "adamw_8bit": 2, "paged_adamw_8bit": 2, "lion_32bit": 4}  # bytes a parameter; else 8
HOLES = {2: 13, 4: 22}  # bytes of a weight → holes a token and layer, in `inner` bytes
IN_ONE_PIECE = 0.1  # share of what training leaves free that large blocks still fit into
LOGITS = 16  # bytes a learned token and entry of the vocabulary: as computed, in float32, softmax, gradients of both
PLAIN_PRODUCTS = 512  # tokens of a row, up to which attention may go by plain products: see `training.attention`
SHORT = 0.5  # share of learned tokens below which only their logits are computed: see `training.answer_loss`
CLASSIFICATION = ("seq_cls", "token_cls")


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest row, and how many of a row's are learned at most."""

    longest: int
    learned: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes.

    Attributes:
        learning: gradients and the optimiser's state.
        before: measuring held-out rows before there are activations; 0: nothing is measured then.
        after: the same once trained, beyond what the activations leave free.
        loading: the height of the load, all in all.
    """

    process: float
    weights: float
    adapter: float
    learning: float
    activations: float
    logits: float
    before: float
    after: float
    loading: float

    @property
    def peak(self) -> float:
        """The height of the whole run."""
        held = self.process + self.weights + self.adapter + self.learning
        return max(self.loading, held + max(self.activations + self.logits, self.before) + self.after)

    def as_dict(self) -> dict[str, int]:
        """For the record."""
        return {name: round(value) for name, value in asdict(self).items()} | {"peak": round(self.peak)}


def estimate_memory(base: BaseModelInfo, spec: RunSpec, lengths: Lengths | None = None) -> MemoryEstimate:
    """The estimate for one training by itself, of one of its processes. `lengths`: of the rows; None: as long as they may be."""
    rows = lengths or assume_max_lengths(spec)
    gpu, width = base_files.uses_gpu(spec.device), get_weight_width(spec)
    counted = parameter_count.estimate_parameters(base, spec.lora, spec.task)
    whole = spec.lora.method == "none"
    weights = base.bytes(width, spec.model.quantization)
    activations, logits = _estimate_activations(base, spec, rows), _estimate_logits(base, spec, rows)
    read = 0 if gpu or base.stored == weights else base.stored
    batch, copies = _estimate_evaluation(base, spec, rows.longest)
    return MemoryEstimate(
        process=0 if gpu else PROCESS,
        weights=weights,
        adapter=4 * counted.held,
        learning=counted.trained * ((width if whole else 4) + count_optimizer_bytes(spec)),
        activations=activations,
        logits=logits,
        before=batch + copies if getattr(spec.action, "evaluate_before", False) else 0,
        after=max(0.0, batch - activations - logits) + max(0.0, copies - IN_ONE_PIECE * (activations + logits)),
        loading=(0 if gpu else IMPORTED) + weights + read,
    )


def assume_max_lengths(spec: RunSpec) -> Lengths:
    """Rows as long as they may be, with short answers unless all is learned."""
    return Lengths(spec.task.max_length, spec.task.max_length if spec.task.loss_on == "all" else 1)


def get_weight_width(spec: RunSpec) -> int:
    """Bytes of a weight of the base. Where every weight is trained, four unless asked otherwise."""
    return 4 if spec.lora.method == "none" and spec.device.dtype == "auto" else base_files.weight_bytes(spec.device)


def count_optimizer_bytes(spec: RunSpec) -> int:
    """Bytes that the optimiser keeps for a parameter."""
    return STATE.get(spec.trainer.optim, 8)


def _estimate_activations(base: BaseModelInfo, spec: RunSpec, rows: Lengths) -> float:
    width, gpu = get_weight_width(spec), base_files.uses_gpu(spec.device)
    tokens = spec.trainer.per_device_train_batch_size * rows.longest
    layer = estimate_layer_activations(
        base, spec.lora, width, _count_score_bytes(spec, width, gpu) * base.heads * rows.longest
    )
    holes = 0 if gpu else HOLES[width] * base.inner * base.layers
    if spec.trainer.gradient_checkpointing:
        return tokens * (base.layers * base.hidden * width + layer + holes)
    return tokens * (base.layers * layer + holes)


def estimate_layer_activations(base: BaseModelInfo, lora: Any, width: int, scores: float) -> float:
    """Bytes that one layer keeps for the backward pass of one token. `scores`: those of attention."""
    attention = (3 * base.hidden if scores else 2 * base.hidden + 2 * base.keys) * width
    plain = 4 * 2 * base.hidden + attention + scores + 3 * base.inner * width
    return plain + _estimate_adapter_inputs(base, lora, width)


def _estimate_adapter_inputs(base: BaseModelInfo, lora: Any, width: int) -> float:
    """Inputs of the adapted layers, what A makes of them, and what variants keep beside."""
    found = parameter_count.list_target_modules(base, lora).values()
    into, out = (sum(one[place] for one in found) / base.layers for place in (1, 0))
    if width == 4:  # layers side by side read the same tensor, and the attention's answers are kept anyway
        into = min(into, 2 * base.hidden + base.inner)
    if not isinstance(lora, LoraSpec):
        return 4 * into
    more = 2 * into if lora.lora_dropout else 0  # the mask, and what it leaves
    return 4 * (into + more + lora.r * len(found) / base.layers + (2 * out if lora.use_dora else 0))


def _count_score_bytes(spec: RunSpec, width: int, gpu: bool) -> int:
    """Bytes that are kept of a score: none where attention is fused."""
    asked, trainer = spec.model.attn_implementation, spec.trainer
    faster = not (asked or gpu or trainer.torch_compile or trainer.padding_free)
    if asked == "eager" or (faster and width == 2 and spec.task.max_length <= PLAIN_PRODUCTS):
        return 4 + (width if width < 4 else 0)
    return 0


def _estimate_logits(base: BaseModelInfo, spec: RunSpec, rows: Lengths) -> float:
    if spec.task.kind in CLASSIFICATION:
        return 0
    batch = spec.trainer.per_device_train_batch_size
    few = min(batch * rows.learned, rows.longest) if rows.learned < SHORT * rows.longest else rows.longest
    return batch * few * base.vocabulary * LOGITS


def _estimate_evaluation(base: BaseModelInfo, spec: RunSpec, row: int) -> tuple[float, float]:
    """Keys and values of a batch twice with one layer's work; and the copies of the output layer."""
    rows, width = min(spec.trainer.per_device_eval_batch_size, spec.task.data.eval_rows), get_weight_width(spec)
    copied = spec.task.kind == "causal_lm" and width == 2 and not base_files.uses_gpu(spec.device)
    batch = rows * row * (base.layers * 4 * base.keys + 4 * base.inner) * width
    return batch, rows * base.vocabulary * base.hidden * width if copied else 0
