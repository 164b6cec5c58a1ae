"""Freed memory is kept on CPUs: the system is asked for less, unless the user has chosen otherwise."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ASKED = """
import resource, torch
from peftrun.config.schema.run import DeviceSpec
from peftrun.models import device
device.resolve_device(DeviceSpec("cpu", "float32", None, None, 1, 1, 0, None, 29500, None, True, False, True, None))
for _ in range(3): torch.ones(1 << 22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50): torch.ones(1 << 22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**env):
    import os

    done = subprocess.run(
        [sys.executable, "-c", ASKED], env=os.environ | env, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_memory_that_was_freed_is_used_again():
    pages = (1 << 24) // 4096
    assert faults() < 10 * pages  # than for ten of fifty tensors
    assert faults(MALLOC_MMAP_THRESHOLD_="131072") > 40 * pages
