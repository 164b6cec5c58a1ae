"""Memory of cells that are trained together, and how many of them fit into one step: estimates from files alone. Light.

Together they take PROCESS + the base once + for each cell
    adapter parameters × (4 weight + 4 gradient + the optimiser's state, 8 for Adam) bytes, and
    tokens of a batch × layers × (13 × hidden + 4 × inner) × bytes of a weight: what a layer keeps for its backward pass
    (two norms of 4 each, 5 around attention, whose scores are not kept; gate, up, their activation and product), with
    every row as long as the longest, and the logits of what is learned of a row in float32, twice.
Measured on SmolLM2-135M, bfloat16: a further cell of a batch of 512 tokens took 470 MB, the formula says 460.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError
from peftrun.planning import memory, parameter_count
from peftrun.planning.memory import Lengths
from peftrun.system import free_memory
from peftrun.system.sizes import format_gigabytes, parse_size

PROCESS = 900_000_000  # what a run holds beside base and cells, measured: 530 MB once the libraries are imported, 900 MB at its height


@dataclass(frozen=True)
class Limits:
    """What cells that are trained together may take.

    Attributes:
        memory, cells: what the user allows: bytes, and cells in one step; None: nothing was said.
        here: they run on this machine, whose memory is a limit where the user has set none.
        free: bytes that are free here; None: not looked at, or not known.
    """

    memory: int | None = None
    cells: int | None = None
    here: bool = True
    free: int | None = None

    def now(self, spec: RunSpec) -> "Limits":
        """The same with what is free at this moment for such a run."""
        looked_at = self.here and not base_files.uses_gpu(spec.device)
        return replace(self, free=free_memory.get_available_memory().bytes if looked_at else None)

    @property
    def bytes(self) -> int | None:
        """Bytes that nothing may go beyond; None: there is no such limit. What the user sets wins over what is free."""
        return self.memory or (self.free if self.cells is None else None)


def read_limits(memory_limit: object, max_cells: object, here: bool = True) -> Limits:
    """The launcher's options, checked. Raises: ConfigError: one of them is no such thing; one line each."""
    problems = []
    memory = parse_size(memory_limit)
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
    """How many of the first of these runs fit together, at least one, and the bytes that they take."""
    needed, size = estimate_shared_memory(base, runs[0][0]) + estimate_cell_memory(base, *runs[0]), 1
    for spec, rows in runs[1 : allowed.cells]:
        more = estimate_cell_memory(base, spec, rows)
        if allowed.bytes is not None and needed + more > allowed.bytes:
            break
        size, needed = size + 1, needed + more
    return size, needed


def choose_cells_per_step(runs: Sequence[tuple[RunSpec, Lengths | None]], allowed: Limits) -> tuple[int, str]:
    """How many of these runs, which share a base, are trained in one step, whichever they are; and what is said of that.

    Args: runs: with the lengths of their rows; of each the dtype that it has.
    """
    count, base = len(runs), base_files.read_base_info(runs[0][0].model)
    said = f"{count} cells on one base"
    if base is None:
        size = min(count, allowed.cells or count)
        return size, f"{said}, {_format_step_size(size, count, allowed)}"
    largest_first = sorted(runs, key=lambda run: estimate_cell_memory(base, *run), reverse=True)
    size, needed = count_fitting(base, largest_first, allowed)
    told = (
        f"{said}, {_format_step_size(size, count, allowed)}: about {format_gigabytes(needed)}{_format_limit(allowed)}"
    )
    longest = max((rows.longest for _, rows in runs if rows), default=None)
    told += f", rows of at most {longest} tokens" if longest else ""
    if size < count and size != allowed.cells:
        told += (
            "; a larger one takes more"
            if allowed.memory
            else f"; hydra.launcher.max_cells={count} takes all at once, whatever the estimate"
        )
    return size, told


def _format_step_size(size: int, count: int, allowed: Limits) -> str:
    if size == count:
        return "all at once"
    return f"{size} at once" + (f" (hydra.launcher.max_cells={size})" if size == allowed.cells else "")


def _format_limit(allowed: Limits) -> str:
    if allowed.memory:
        return f" of hydra.launcher.memory_limit ({format_gigabytes(allowed.memory)})"
    return f" of {format_gigabytes(allowed.free)} free" if allowed.free else ""


def estimate_shared_memory(base: BaseModelInfo, spec: RunSpec) -> float:
    """Estimated bytes that a wave takes whatever its cells: the process, and the base once."""
    return PROCESS + base.bytes(base_files.weight_bytes(spec.device), spec.model.quantization)


def estimate_cell_memory(base: BaseModelInfo, spec: RunSpec, lengths: Lengths | None = None) -> float:
    """Estimated bytes of one cell among others: its adapter with gradients and the optimiser's state, and the activations of its rows.

    Args: lengths: of its rows; None: as long as they may be.
    """
    rows, batch = lengths or memory.assume_max_lengths(spec), spec.trainer.per_device_train_batch_size
    trained = parameter_count.estimate_parameters(base, spec.lora, spec.task).trained
    activations = (
        batch * rows.longest * base.layers * (13 * base.hidden + 4 * base.inner) * base_files.weight_bytes(spec.device)
    )
    logits = 0 if spec.task.kind in memory.CLASSIFICATION else batch * rows.learned * base.vocabulary * 8
    return trained * (8 + memory.count_optimizer_bytes(spec)) + activations + logits
