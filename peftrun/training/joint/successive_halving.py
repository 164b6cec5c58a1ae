"""Successive halving: at each rung the cells with the lowest loss go on, the others stop (Jamieson & Talwalkar 2016, arXiv:1502.07943).

A stopped cell leaves a checkpoint, from which the same sweep without halving resumes it.
"""

from dataclasses import dataclass

from peftrun.training.joint.scheduler import RungPause


@dataclass(frozen=True)
class SuccessiveHalving:
    """Rungs at `min_steps`, `min_steps`·`factor`, `min_steps`·`factor`², … optimizer steps; at each, one in `factor` cells goes on."""

    min_steps: int
    factor: int

    def is_rung(self, step: int) -> bool:
        """Whether cells are compared after so many steps."""
        while step > self.min_steps and step % self.factor == 0:
            step //= self.factor
        return step == self.min_steps

    def judge(self, paused: list[RungPause]) -> None:
        """Sets `go_on` and `verdict` of all cells at one rung: the best go on, at least one."""
        ranked = sorted(paused, key=lambda pause: (pause.score, pause.cell))
        survivors = max(1, len(ranked) // self.factor)
        for rank, pause in enumerate(ranked, 1):
            pause.go_on = rank <= survivors
            pause.verdict = (
                f"{pause.measure} {pause.score:.4f} was number {rank} of {len(ranked)}, of which {survivors} went on"
            )
