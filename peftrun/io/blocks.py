"""Work on parts of tensors by several threads, each with a part of its own.

torch's own threads share every operation and wait for each other after it, spinning: where others compute beside them (hashes of files, say)
that takes many times as long. Parts of a tensor need nobody to wait.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Barrier
from typing import TypeVar

import torch

MAX_WORKERS = 8  # each has a part and what is computed of it in memory
Block = TypeVar("Block")
Result = TypeVar("Result")


def map_blocks(work: Callable[[Block], Result], blocks: Sequence[Block]) -> list[Result]:
    """What `work` gives for each block, in order; without gradients, by as many threads as torch has, and eight at most.

    One block alone is for torch's own threads.
    """
    count, run = min(MAX_WORKERS, torch.get_num_threads()), partial(_run_inference, work)
    alone = count == 1 or len(blocks) == 1
    return list(map(run, blocks) if alone else _start_workers(count).map(run, blocks))


def _run_inference(work: Callable[[Block], Result], block: Block) -> Result:
    with torch.inference_mode():
        return work(block)


@cache
def _start_workers(count: int) -> ThreadPoolExecutor:
    """Threads in each of which torch computes alone."""
    threads, all_started = torch.get_num_threads(), Barrier(count)
    workers = ThreadPoolExecutor(count, "blocks", torch.set_num_threads, (1,))
    for started in [workers.submit(all_started.wait) for _ in range(count)]:
        started.result()
    torch.set_num_threads(threads)  # threads that start later take what was set last
    return workers
