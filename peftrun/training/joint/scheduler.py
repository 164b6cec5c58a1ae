"""Cells take their steps together: each trains in a coroutine of its own, and waits in it until all have brought a batch.

A cell's code is the lone run's: what is global in a process (random numbers, accelerate's count of accumulated batches) is put away
when it waits and brought back when it goes on.
"""

import copy
import gc
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate.state import GradientState
from greenlet import getcurrent, greenlet

from peftrun.adapters.joint.rng_streams import RngStream
from peftrun.training.joint.step import CellBatch, JointStep


class ProcessState:
    """What a cell has left of the process's state."""

    def __init__(self) -> None:
        self.draws = RngStream()
        self.capture_state()

    def capture_state(self) -> None:
        """The process's state is this cell's."""
        self.draws.keep()
        self.python, self.numpy = random.getstate(), np.random.get_state()
        self.accumulation = {key: copy.copy(value) for key, value in GradientState._shared_state.items()}

    def restore_state(self) -> None:
        """The process's state is as this cell has left it."""
        self.draws.restore()
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        GradientState._shared_state.clear()
        GradientState._shared_state.update(self.accumulation)


@dataclass
class RungPause:
    """A cell has reached a rung: it waits until all that will reach it have, and is told whether it goes on.

    Attributes:
        score, measure: the loss that cells are compared by, and what loss that is.
        verdict: how it compared.
    """

    cell: int
    step: int
    score: float
    measure: str
    go_on: bool = True
    verdict: str = ""


@dataclass
class CellScheduler:
    """Cells that are trained together.

    Attributes:
        room: computes the turns of one step.
        at_once: most cells in one step; the others follow as seats become free.
        spent: seconds of each cell: its own, and of the steps taken together its part by tokens.
        halving: says where cells are compared and who goes on; None: all of them to their ends.
    """

    joint_step: JointStep
    cells_per_step: int
    halving: Any = None
    process_states: dict[int, ProcessState] = field(default_factory=dict)
    running: dict[int, greenlet] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)
    entered: float = 0.0

    def run(self, bodies: dict[int, Callable[[], None]], each_step: Callable[[list[CellBatch]], None]) -> None:
        """Runs every body to its end. A body must not raise: what goes wrong in a cell is the cell's own."""
        waiting, asked, paused = deque(bodies.items()), dict[int, CellBatch](), dict[int, RungPause]()
        ours = ProcessState()
        gc.freeze()  # each Trainer has all garbage collected when it begins: what is here to stay need not be looked at again
        try:
            while waiting or asked or paused:
                while waiting and len(asked) < self.cells_per_step:
                    cell, body = waiting.popleft()
                    self.process_states[cell], self.running[cell] = ProcessState(), greenlet(body)
                    self._resume_cell(cell, asked, paused)
                if asked:
                    turns = [asked[cell] for cell in sorted(asked)]
                    self._train_step(turns)
                    each_step(turns)
                    for cell in sorted(asked):
                        del asked[cell]
                        self._resume_cell(cell, asked, paused)
                elif paused:
                    self._judge_rung(asked, paused)
        finally:
            for one in self.running.values():
                one.throw()  # ends what is open in it
            ours.restore_state()
            gc.unfreeze()

    def is_rung(self, step: int) -> bool:
        """Whether cells are compared after so many steps."""
        return self.halving is not None and self.halving.is_rung(step)

    def request_step(self, request: Any) -> Any:
        """Called by a body: the request, answered. Other cells run meanwhile."""
        getcurrent().parent.switch(request)
        return request

    def get_seconds(self, cell: int) -> float:
        """Seconds that the cell that runs now has taken so far."""
        return self.spent.get(cell, 0.0) + time.perf_counter() - self.entered

    def _train_step(self, turns: list[CellBatch]) -> None:
        started = time.perf_counter()
        self.joint_step.train_batches(turns)
        seconds, tokens = time.perf_counter() - started, sum(turn.inputs["input_ids"].numel() for turn in turns)
        for turn in turns:
            self.spent[turn.cell] += seconds * turn.inputs["input_ids"].numel() / tokens

    def _resume_cell(self, cell: int, asked: dict[int, CellBatch], paused: dict[int, RungPause]) -> None:
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
            asked[cell] = request

    def _judge_rung(self, asked: dict[int, CellBatch], paused: dict[int, RungPause]) -> None:
        lowest = min(pause.step for pause in paused.values())
        here = [pause for pause in paused.values() if pause.step == lowest]
        self.halving.judge(here)
        for pause in here:
            del paused[pause.cell]
            self._resume_cell(pause.cell, asked, paused)
