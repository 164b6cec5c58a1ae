"""Memory of cells that are trained together, and how many of them fit into one step: estimated from files. Light.

Bytes = PROCESS + the base model once + for each cell
    trainable parameters × (4 weight + 4 gradient + optimizer state, 8 for Adam), and
    tokens of a batch × layers × (13 × hidden + 4 × inner) × bytes of a weight: activations that a layer saves for its backward pass
    (two norms of 4 each, 5 around attention, whose scores are not saved; gate, up, their activation and product), with
    every row as long as the longest, and the logits of the learned tokens of a row in float32, twice.
Measured on SmolLM2-135M in bfloat16: one more cell with a batch of 512 tokens took 470 MB; the formula says 460.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError
from peftrun.formatting import format_bytes, parse_bytes
from peftrun.planning import memory, parameter_count
from peftrun.planning.memory import Lengths
from peftrun.system import free_memory

PROCESS = 900_000_000  # bytes of a run without base model and cells, measured: 530 MB after imports, 900 MB at the peak


@dataclass(frozen=True)
class Limits:
    """Limits of cells that are trained together.

    Attributes:
        memory, cells: set by the user: bytes, and cells in one step; None: not set.
        here: the cells run on this machine, whose free memory is the limit where the user has set none.
        free: free bytes of this machine, for one worker; None: not measured, or unknown.
        workers: processes of this machine that share its free memory.
    """

    memory: int | None = None
    cells: int | None = None
    here: bool = True
    free: int | None = None
    workers: int = 1

    def now(self, spec: RunSpec) -> "Limits":
        """The same limits with the memory that is free now. On a GPU it is not measured."""
        is_measured = self.here and not base_files.uses_gpu(spec.device)
        return replace(self, free=free_memory.get_available_memory().bytes // self.workers if is_measured else None)

    @property
    def bytes(self) -> int | None:
        """Limit in bytes; None: there is none. A limit set by the user, also one of cells, replaces the free memory."""
        return self.memory or (self.free if self.cells is None else None)


def read_limits(memory_limit: object, max_cells: object, here: bool = True) -> Limits:
    """Check the launcher's options. Raises: ConfigError: one line for each invalid one."""
    problems = []
    memory = parse_bytes(memory_limit)
    if memory_limit is not None and not memory:
        problems.append(
            f"hydra.launcher.memory_limit={memory_limit}: must be an amount of memory; type hydra.launcher.memory_limit=6GiB"
        )
    if max_cells is not None and (not isinstance(max_cells, int) or isinstance(max_cells, bool) or max_cells < 1):
        problems.append(
            f"hydra.launcher.max_cells={max_cells}: must be a whole number of at least 1; type hydra.launcher.max_cells=8"
        )
    if problems:
        raise ConfigError(*problems)
    return Limits(memory, max_cells if isinstance(max_cells, int) else None, here)


def count_fitting(
    base: BaseModelInfo, runs: Sequence[tuple[RunSpec, Lengths | None]], allowed: Limits
) -> tuple[int, float]:
    """How many of the first runs fit together, at least one, and their estimated bytes."""
    needed, size = estimate_shared_memory(base, runs[0][0]) + estimate_cell_memory(base, *runs[0]), 1
    for spec, rows in runs[1 : allowed.cells]:
        cell_bytes = estimate_cell_memory(base, spec, rows)
        if allowed.bytes is not None and needed + cell_bytes > allowed.bytes:
            break
        size, needed = size + 1, needed + cell_bytes
    return size, needed


def choose_cells_per_step(runs: Sequence[tuple[RunSpec, Lengths | None]], allowed: Limits) -> tuple[int, str]:
    """How many of these runs, which share a base model, are trained in one step; and a line for the terminal.

    Args: runs: with their row lengths and resolved dtype.
    """
    count, base = len(runs), base_files.read_base_info(runs[0][0].model)
    cells = f"{count} cells on one base model"
    if base is None:
        size = min(count, allowed.cells or count)
        return size, f"{cells}, {_format_step_size(size, count, allowed)}"
    # Cells take turns as others end, so any `size` of them must fit: counted with the largest ones.
    largest_first = sorted(runs, key=lambda run: estimate_cell_memory(base, *run), reverse=True)
    size, needed = count_fitting(base, largest_first, allowed)
    line = f"{cells}, {_format_step_size(size, count, allowed)}: about {format_bytes(needed)}"
    if allowed.memory:
        line += f" of hydra.launcher.memory_limit ({format_bytes(allowed.memory)})"
    elif allowed.free:
        line += f" of {format_bytes(allowed.free)} free"
    longest = max((rows.longest for _, rows in runs if rows), default=None)
    line += f", rows of at most {longest} tokens" if longest else ""
    if size < count and size != allowed.cells:
        line += (
            "; a larger one takes more"
            if allowed.memory
            else f"; hydra.launcher.max_cells={count} takes all at once, whatever the estimate"
        )
    return size, line


def _format_step_size(size: int, count: int, allowed: Limits) -> str:
    if size == count:
        return "all at once"
    return f"{size} at once" + (f" (hydra.launcher.max_cells={size})" if size == allowed.cells else "")


def estimate_shared_memory(base: BaseModelInfo, spec: RunSpec) -> float:
    """Estimated bytes that cells trained together share: the process, and the base model once."""
    return PROCESS + base.bytes(base_files.weight_bytes(spec.device), spec.model.quantization)


def estimate_cell_memory(base: BaseModelInfo, spec: RunSpec, lengths: Lengths | None = None) -> float:
    """Estimated bytes that one more cell adds: its adapter with gradients and optimizer state, and the activations of its rows.

    Args: lengths: of its rows; None: as long as task.max_length allows.
    """
    rows, batch = lengths or memory.assume_max_lengths(spec), spec.trainer.per_device_train_batch_size
    trained = parameter_count.estimate_parameters(base, spec).trained
    # Activations: (batch, tokens, 13 × hidden + 4 × inner) per layer. Logits: (batch, learned tokens, vocabulary), float32, twice.
    activations = (
        batch * rows.longest * base.layers * (13 * base.hidden + 4 * base.inner) * base_files.weight_bytes(spec.device)
    )
    logits = 0 if spec.task.type in memory.CLASSIFICATION else batch * rows.learned * base.vocabulary * 8
    return trained * (8 + memory.count_optimizer_bytes(spec)) + activations + logits
