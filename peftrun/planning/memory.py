"""Memory of one training run, estimated from the files of its base model: its parts and its peak. Light.

While the base model is loaded: IMPORTED, the base model, and its files too if they are in another dtype than the loaded weights.
While it is trained: PROCESS, the base model, the adapter (float32) with gradients and optimizer state, and for each token
    of a batch and each layer the activations saved for the backward pass, with every row as long as the longest:
    2 × hidden   inputs of the two norms, in float32
    attention    queries, keys, values and outputs; eager attention also saves the scores, of each head and each token of the row,
                 in float32 and in the weights' dtype
    3 × inner    gate, its activation, up
    inputs       of the adapted layers, in float32 (copies if the base model has another dtype), and the outputs of A (r per token).
With gradient checkpointing: the inputs of all layers, and the rest for one layer at a time.

HOLES: unused heap memory of a CPU run. glibc before 2.38 cannot put an aligned block into a hole of exactly its size, so the temporary
buffers of a layer leave holes that grow with the number of layers, with or without gradient checkpointing: measured 20 kB per token and
layer of SmolLM2-135M in bfloat16, 34 kB in float32, here as a multiple of `inner` bytes. Not on GPUs, where torch has its own allocator.

Logits count for learned tokens. Evaluation rows, in a 2-byte dtype on a CPU, need a copy of the output layer for each row of a batch:
torch multiplies the last position of each row as a separate matrix, and the memory free after training is too fragmented for the copies.

Measured on SmolLM2-135M on a CPU: benchmarks/results/memory_estimate.md. Not measured on a GPU, where the process itself takes no GPU memory.
"""

from dataclasses import asdict, dataclass
from typing import Any

from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config.schema.lora import LoraSpec
from peftrun.config.schema.optimizers import OPTIMIZERS
from peftrun.config.schema.run import RunSpec
from peftrun.planning import parameter_count

IMPORTED = 570_000_000  # bytes of the process after imports
PROCESS = 650_000_000  # the same with a tokenizer, rows, and what a training step imports and compiles
HOLES = {2: 13, 4: 22}  # bytes of a weight → holes per token and layer, in multiples of `inner` bytes
IN_ONE_PIECE = 0.1  # share of the memory freed after training that is contiguous enough for large blocks
LOGITS = 16  # bytes per learned token and vocabulary entry: logits, their float32 copy, softmax, gradients of both
PLAIN_PRODUCTS = 512  # longest row, in tokens, for which eager attention may be used: see `training.cpu_attention`
SHORT = 0.5  # share of learned tokens below which only their logits are computed: see `training.completion_loss`
CLASSIFICATION = ("seq_cls", "token_cls")


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest row, and the largest number of learned tokens (labels) of a row."""

    longest: int
    learned: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes.

    Attributes:
        learning: gradients and optimizer state.
        before: evaluation before training, when there are no activations; 0: there is none.
        after: evaluation after training, beyond the memory that activations have freed.
        loading: peak of the whole process while the base model is loaded.
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
        """Peak of the whole run."""
        static = self.process + self.weights + self.adapter + self.learning
        return max(self.loading, static + max(self.activations + self.logits, self.before) + self.after)

    def as_dict(self) -> dict[str, int]:
        """For record.json."""
        return {name: round(value) for name, value in asdict(self).items()} | {"peak": round(self.peak)}


def estimate_memory(base: BaseModelInfo, spec: RunSpec, lengths: Lengths | None = None) -> MemoryEstimate:
    """Estimate for one process of a training run. `lengths`: of the rows; None: as long as task.max_length allows."""
    rows = lengths or assume_max_lengths(spec)
    gpu, width = base_files.uses_gpu(spec.device), get_weight_width(spec)
    parameters = parameter_count.estimate_parameters(base, spec)
    is_full_finetuning = spec.lora.method == "none"
    weights = base.bytes(width, spec.model.quantization)
    activations, logits = _estimate_activations(base, spec, rows), _estimate_logits(base, spec, rows)
    # Files in another dtype are in memory next to the converted weights.
    files = 0 if gpu or base.stored == weights else base.stored
    batch, copies = _estimate_evaluation(base, spec, rows.longest)
    return MemoryEstimate(
        process=0 if gpu else PROCESS,
        weights=weights,
        adapter=4 * parameters.held,
        learning=parameters.trained * ((width if is_full_finetuning else 4) + count_optimizer_bytes(spec)),
        activations=activations,
        logits=logits,
        before=batch + copies if getattr(spec.action, "evaluate_before", False) else 0,
        after=max(0.0, batch - activations - logits) + max(0.0, copies - IN_ONE_PIECE * (activations + logits)),
        loading=(0 if gpu else IMPORTED) + weights + files,
    )


def assume_max_lengths(spec: RunSpec) -> Lengths:
    """Rows of task.max_length tokens, with short answers unless all tokens are learned."""
    return Lengths(spec.task.max_length, spec.task.max_length if spec.task.loss_on == "all" else 1)


def get_weight_width(spec: RunSpec) -> int:
    """Bytes of a weight of the base model: four in full fine-tuning unless device.dtype is set, since small updates would be rounded away."""
    return 4 if spec.lora.method == "none" and spec.device.dtype == "auto" else base_files.weight_bytes(spec.device)


def count_optimizer_bytes(spec: RunSpec) -> int:
    """Bytes of optimizer state per trained parameter."""
    return OPTIMIZERS[spec.trainer.optim].state_bytes


def _estimate_activations(base: BaseModelInfo, spec: RunSpec, rows: Lengths) -> float:
    width, gpu = get_weight_width(spec), base_files.uses_gpu(spec.device)
    attention, trainer = spec.model.attn_implementation, spec.trainer
    tokens = trainer.per_device_train_batch_size * rows.longest
    may_be_eager = not (attention or gpu or trainer.torch_compile or trainer.padding_free)
    is_eager = attention == "eager" or (may_be_eager and width == 2 and spec.task.max_length <= PLAIN_PRODUCTS)
    score_bytes = 4 + (width if width < 4 else 0) if is_eager else 0  # of one score; fused attention saves none
    layer = estimate_layer_activations(base, spec.lora, width, score_bytes * base.heads * rows.longest)
    holes = 0 if gpu else HOLES[width] * base.inner * base.layers
    if trainer.gradient_checkpointing:
        return tokens * (base.layers * base.hidden * width + layer + holes)
    return tokens * (base.layers * layer + holes)


def estimate_layer_activations(base: BaseModelInfo, lora: Any, width: int, scores: float) -> float:
    """Bytes that one layer saves for the backward pass of one token. `scores`: bytes of its attention scores; 0: fused attention."""
    attention = (3 * base.hidden if scores else 2 * base.hidden + 2 * base.keys) * width
    plain = 4 * 2 * base.hidden + attention + scores + 3 * base.inner * width
    # The adapter's part: the adapted layers' inputs, the outputs of A, and tensors that variants add.
    modules = parameter_count.list_target_modules(base, lora).values()  # (outputs, inputs) of each
    inputs = sum(size for _, size in modules) / base.layers
    outputs = sum(size for size, _ in modules) / base.layers
    if width == 4:
        # No float32 copies: q, k, v (and gate, up) share one input, and the attention output is saved anyway.
        inputs = min(inputs, 2 * base.hidden + base.inner)
    if not isinstance(lora, LoraSpec):
        return plain + 4 * inputs
    dropout = 2 * inputs if lora.lora_dropout else 0  # the mask, and the masked input
    variant = 2 * outputs if lora.use_dora else 0
    return plain + 4 * (inputs + dropout + lora.r * len(modules) / base.layers + variant)


def _estimate_logits(base: BaseModelInfo, spec: RunSpec, rows: Lengths) -> float:
    if spec.task.type in CLASSIFICATION:
        return 0
    batch = spec.trainer.per_device_train_batch_size
    # A position is computed for all rows of a batch if one of them has a label there.
    positions = min(batch * rows.learned, rows.longest) if rows.learned < SHORT * rows.longest else rows.longest
    return batch * positions * base.vocabulary * LOGITS  # (batch, positions, vocabulary)


def _estimate_evaluation(base: BaseModelInfo, spec: RunSpec, row: int) -> tuple[float, float]:
    """Bytes of an evaluation batch (keys and values twice, one layer's buffers), and of the copies of the output layer."""
    rows, width = min(spec.trainer.per_device_eval_batch_size, spec.task.data.num_test_rows), get_weight_width(spec)
    copies_output_layer = spec.task.type == "causal_lm" and width == 2 and not base_files.uses_gpu(spec.device)
    batch = rows * row * (base.layers * 4 * base.keys + 4 * base.inner) * width
    return batch, rows * base.vocabulary * base.hidden * width if copies_output_layer else 0
