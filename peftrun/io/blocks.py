"""Maps a function over blocks of a tensor, one thread per block.

torch's own threads share every operation and spin until the slowest has finished: while other threads are busy (hashing files, say) that
takes many times as long. Threads that each compute a block never wait for each other.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

MAX_WORKERS = 8  # each holds a block and its result in memory
Block = TypeVar("Block")
Result = TypeVar("Result")


def map_blocks(compute: Callable[[Block], Result], blocks: Sequence[Block]) -> list[Result]:
    """`compute` of each block, in order, without gradients; on as many threads as torch has, at most `MAX_WORKERS`.

    A single block is left to torch's own threads.
    """
    count = min(MAX_WORKERS, torch.get_num_threads())

    def run(block: Block) -> Result:
        with torch.inference_mode():  # a setting of each thread
            return compute(block)

    return list(map(run, blocks) if count == 1 or len(blocks) == 1 else _start_workers(count).map(run, blocks))


@cache
def _start_workers(count: int) -> ThreadPoolExecutor:
    """Threads in each of which torch computes single-threaded."""
    threads, all_started = torch.get_num_threads(), Barrier(count)
    workers = ThreadPoolExecutor(count, "blocks", torch.set_num_threads, (1,))
    for started in [workers.submit(all_started.wait) for _ in range(count)]:
        started.result()
    torch.set_num_threads(threads)  # the last call's number also applies to threads that start later
    return workers
