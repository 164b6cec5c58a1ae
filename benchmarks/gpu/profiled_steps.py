"""torch.profiler over some steps of a training, from a callback."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.gpu.runs import synchronize


class ProfiledSteps(TrainerCallback):
    """Profiles `steps` whole steps after the first `skipped`. Of cells that are trained together the first one to get there counts."""

    def __init__(self, skipped: int, steps: int) -> None:
        self.skipped, self.steps, self.running, self.finished = skipped, steps, False, False
        cuda = [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, *cuda], acc_events=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts and stops; the steps in between are not touched."""
        if state.global_step == self.skipped and not self.running and not self.finished:
            synchronize()
            self.profiler.start()
            self.running = True
        elif state.global_step == self.skipped + self.steps and self.running:
            self.running, self.finished = False, True
            self.profiler.stop()

    def count(self, columns: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
        """A step's operations of aten, kernels on the GPU, and for each column calls of those names. Raises: RuntimeError: never started."""
        if not self.finished:
            raise RuntimeError(f"the training ended before step {self.skipped + self.steps}")
        calls: Counter[str] = Counter()
        kernels = 0
        for event in self.profiler.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                kernels += not event.name.startswith(("Memcpy", "Memset"))
            else:
                calls[event.name] += 1
        counted = {name: sum(calls[call] for call in names) for name, names in columns.items()}
        counted = {
            "aten ops": sum(n for call, n in calls.items() if call.startswith("aten::")),
            **counted,
            "kernels": kernels,
        }
        return {name: number / self.steps for name, number in counted.items()}

    def build_table(self) -> str:
        """The thirty operations or kernels that take longest."""
        averages = self.profiler.key_averages()
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        return averages.table(sort_by=order, row_limit=30, max_name_column_width=70)
