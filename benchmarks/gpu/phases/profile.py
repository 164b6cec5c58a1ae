"""What a training step is made of: operations, reads of the GPU's values by the host, kernels; and the kernels that take longest.

Counted over whole steps (from the end of one to the end of another: next batch, forward, backward, optimizer, logging) by torch.profiler.
`quiet`: nothing is logged in these steps; `logged`: each step is. `joint_N`: N cells trained together, counted a joint step.
"""

from typing import Any

from benchmarks import report
from benchmarks.gpu import contest, equality, tables
from benchmarks.gpu.contest import Rows
from benchmarks.gpu.context import LOGS, RESERVED, TINY, Case
from benchmarks.gpu.inputs import get_base

SECONDS = 240
FIRST, STEPS = 4, 4  # steps before those that are counted, and how many are
LOGGING = {"quiet": 1000, "logged": 1}
CONTESTANTS = ("peftrun", "trainer", "trl")
CELLS = (2, 8)
# column → names of the profiler. An item() is a read of one value, _local_scalar_dense what every such read ends in.
COUNTED = {
    "host reads": ("aten::_local_scalar_dense",),
    "item": ("aten::item",),
    "is_nonzero": ("aten::is_nonzero",),
    "stream syncs": ("cudaStreamSynchronize",),
    "device syncs": ("cudaDeviceSynchronize",),
    "event syncs": ("cudaEventSynchronize",),
    "copies": ("cudaMemcpyAsync",),
    "launches": ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"),
}


def list_cases() -> dict[str, Case]:
    """Name → case."""
    lone = {f"{name}.{logging}": Case(60.0) for name in CONTESTANTS for logging in LOGGING}
    return lone | {f"joint_{cells}.quiet": Case(60.0) for cells in CELLS}


def run_case(case: str) -> dict[str, Any]:
    """Counts a step."""
    from benchmarks.gpu.profiled_steps import ProfiledSteps

    name, _, logging = case.partition(".")
    counter = ProfiledSteps(FIRST, STEPS)
    tokens, batch = (64, 2) if TINY else (1024, 4)
    rows = Rows(f"profile-{tokens}", [tokens] * (batch * (FIRST + STEPS + 2) + 4), tokens, batch)
    overrides = contest.choose_run(get_base("1b"), rows, steps=FIRST + STEPS + 2)
    overrides.append(f"trainer.logging_steps={LOGGING[logging]}")
    with contest.call_back(counter):
        if name.startswith("joint_"):
            cells = int(name.removeprefix("joint_"))
            equality.train_jointly([[*overrides, f"seed={seed}"] for seed in range(cells)])
        else:
            contest.train(name, get_base("1b"), overrides)
    (LOGS / f"profile-{case}.txt").write_text(counter.build_table())
    return counter.count(COUNTED)


def build_tables(results: dict[str, Any]) -> list[str]:
    """Counts a step; what is nowhere counted, as the GPU's on a CPU, has no column."""
    found = {case: figures for case, figures in results.items() if "aten ops" in figures}
    first = next(iter(found.values()), {})
    columns = [name for name in first if name not in RESERVED and any(one[name] for one in found.values())]
    rows = [[case, *(tables.format_value(one[name]) for name in columns)] for case, one in found.items()]
    return [report.table(["a step of", *columns], rows)]
