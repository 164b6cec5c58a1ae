"""Runs the cells of a joint training as coroutines, each waiting at every batch until all cells have one for the joint step.

A cell's code is that of a run of its own. Whatever is global in a process (random state, accelerate's count of accumulated
batches) is saved when a cell waits and restored when it continues.
"""

import gc
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet

from peftrun.adapters.joint.rng_streams import RngStream
from peftrun.compat.accelerate import capture_gradient_state, restore_gradient_state
from peftrun.training.joint.step import CellBatch, JointStep


class ProcessState:
    """The process-wide state of one cell: random state of torch, Python and NumPy, and accelerate's GradientState."""

    def __init__(self) -> None:
        self.draws = RngStream()
        self.capture_state()

    def capture_state(self) -> None:
        """Saves the state of the process as this cell's."""
        self.draws.keep()
        self.python, self.numpy = random.getstate(), np.random.get_state()
        self.accumulation = capture_gradient_state()

    def restore_state(self) -> None:
        """Sets the state of the process to this cell's."""
        self.draws.restore()
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        restore_gradient_state(self.accumulation)


@dataclass
class RungPause:
    """A cell's request at a rung: it waits until all cells that will reach the rung have reached it.

    Attributes:
        score, measure: the loss by which cells are compared, and which loss it is.
        go_on, verdict: the answer: whether the cell continues, and how it compared.
    """

    cell: int
    step: int
    score: float
    measure: str
    go_on: bool = True
    verdict: str = ""


@dataclass
class CellScheduler:
    """Schedules cells that are trained together.

    Attributes:
        joint_step: computes the batches of one step.
        cells_per_step: most cells in one step; the others start as running ones end.
        halving: decides at which steps cells are compared and which go on; None: all run to their ends.
        process_states, running: cell → its process state, and its coroutine.
        spent: cell → seconds: its own code, and its share by tokens of the joint steps.
        padding, tokens: cell → tokens by which its rows were padded to match those of other cells, and tokens of its own batches.
        entered: clock reading when the current cell was last resumed.
    """

    joint_step: JointStep
    cells_per_step: int
    halving: Any = None
    process_states: dict[int, ProcessState] = field(default_factory=dict)
    running: dict[int, greenlet] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)
    padding: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    entered: float = 0.0

    def run(self, bodies: dict[int, Callable[[], None]], each_step: Callable[[list[CellBatch]], None]) -> None:
        """Runs the body of every cell to its end. A body must not raise: it handles the errors of its cell itself."""
        waiting, requests, paused = deque(bodies.items()), dict[int, CellBatch](), dict[int, RungPause]()
        own_state = ProcessState()
        # Every Trainer collects all garbage when it starts: what exists now stays, and need not be scanned again.
        gc.freeze()
        try:
            while waiting or requests or paused:
                while waiting and len(requests) < self.cells_per_step:
                    cell, body = waiting.popleft()
                    self.process_states[cell], self.running[cell] = ProcessState(), greenlet(body)
                    self._resume_cell(cell, requests, paused)
                if requests:
                    batches = [requests[cell] for cell in sorted(requests)]
                    started = time.perf_counter()
                    self.joint_step.train_batches(batches)
                    seconds = time.perf_counter() - started
                    tokens = [batch.inputs["input_ids"].numel() for batch in batches]
                    for batch, count in zip(batches, tokens, strict=True):
                        self.spent[batch.cell] += seconds * count / sum(tokens)
                        self.padding[batch.cell] += batch.padding
                        self.tokens[batch.cell] += count
                    each_step(batches)
                    for cell in sorted(requests):
                        del requests[cell]
                        self._resume_cell(cell, requests, paused)
                elif paused:
                    # No cell is on its way to the lowest rung any more: those that wait there can be compared.
                    lowest = min(pause.step for pause in paused.values())
                    rung = [pause for pause in paused.values() if pause.step == lowest]
                    self.halving.judge(rung)
                    for pause in rung:
                        del paused[pause.cell]
                        self._resume_cell(pause.cell, requests, paused)
        finally:
            for coroutine in self.running.values():
                coroutine.throw()  # runs the cell's `finally` and `with` blocks
            own_state.restore_state()
            gc.unfreeze()

    def is_rung(self, step: int) -> bool:
        """Whether cells are compared after so many steps."""
        return self.halving is not None and self.halving.is_rung(step)

    def request_step(self, request: Any) -> Any:
        """Called by a body: hands a CellBatch or a RungPause over, and returns it answered. Other cells run meanwhile."""
        getcurrent().parent.switch(request)
        return request

    def get_padding_share(self, cell: int) -> float:
        """The share of the tokens computed for a cell that only made its rows as long as those of other cells."""
        return self.padding[cell] / max(1, self.padding[cell] + self.tokens[cell])

    def get_seconds(self, cell: int) -> float:
        """Seconds that the current cell has taken so far."""
        return self.spent.get(cell, 0.0) + time.perf_counter() - self.entered

    def _resume_cell(self, cell: int, requests: dict[int, CellBatch], paused: dict[int, RungPause]) -> None:
        """Runs a cell up to its next request, which is added to `requests` or `paused`, or to its end."""
        self.entered = time.perf_counter()
        self.process_states[cell].restore_state()
        request = self.running[cell].switch()
        self.process_states[cell].capture_state()
        self.spent[cell] = self.get_seconds(cell)
        if self.running[cell].dead:
            del self.running[cell]
        elif isinstance(request, RungPause):
            paused[cell] = request
        else:
            requests[cell] = request
