"""How much main memory this process can still allocate: the limits of the machine, its cgroups and its address space. Light."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from peftrun.formatting import format_bytes

# Address space of a run that does not become resident, measured: 460 MB of imported libraries, 200 MB of stacks and heaps of
# threads until the base model is loaded. In bytes.
UNTOUCHED_BYTES = 660_000_000


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that can still be allocated.

    Attributes:
        limit: what sets them, as text; empty: the machine's memory.
        counts_mapped: memory-mapped files count as well.
    """

    bytes: int
    limit: str = ""
    counts_mapped: bool = False

    def __str__(self) -> str:
        """`1.20 GB free under ulimit -v`."""
        return f"{format_bytes(self.bytes)} free{f' {self.limit}' if self.limit else ''}"


@dataclass(frozen=True)
class _CgroupVersion:
    """File names of a cgroup version. `prefix`: of those entries of memory.stat that include child groups."""

    limit: str
    usage: str
    prefix: str


CGROUP_V1 = _CgroupVersion("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
CGROUP_V2 = _CgroupVersion("memory.max", "memory.current", "")


def get_available_memory() -> FreeMemory:
    """The smallest of all limits."""
    return min(list_memory_limits(), key=lambda free: free.bytes)


def list_memory_limits() -> list[FreeMemory]:
    """The tightest limit of resident memory, and the one of address space if there is one."""
    return [get_resident_limit(), *filter(None, [get_address_space_limit()])]


def get_resident_limit(root: Path = Path("/")) -> FreeMemory:
    """What can still become resident: the machine's available memory, or what a cgroup's limit leaves.

    Swap is not counted: a base model in swap is too slow to be of use. `root`: the folder that holds proc/ and sys/.
    """
    return min((FreeMemory(psutil.virtual_memory().available), *_iter_cgroup_limits(root)), key=lambda free: free.bytes)


def get_address_space_limit() -> FreeMemory | None:
    """What can still become resident below RLIMIT_AS, which counts mapped files as well; None: no limit is set."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    usage = psutil.Process().memory_info()
    untouched = max(0, UNTOUCHED_BYTES - (usage.vms - usage.rss))  # bytes of address space still to be reserved
    return FreeMemory(max(0, limit - usage.vms - untouched), "under ulimit -v", counts_mapped=True)


def _iter_cgroup_limits(root: Path) -> Iterator[FreeMemory]:
    """What the limits of this process's cgroup and of each parent group leave, in each hierarchy that counts memory."""
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = CGROUP_V1 if controllers else CGROUP_V2
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = mount / (path.lstrip("/") if ".." not in path else "")  # in another namespace only the mount is visible
        # a parent's limit binds too, and a container often sets it there
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (free := _read_cgroup_limit(folder, version)) is not None:
                yield free


def _read_cgroup_limit(folder: Path, version: _CgroupVersion) -> FreeMemory | None:
    """None: the cgroup is missing or has no limit."""
    limit, usage = _read_text(folder / version.limit).strip(), _read_text(folder / version.usage).strip()
    if not limit.isdigit() or not usage.isdigit():  # no limit reads `max`
        return None
    entries = dict(line.split(maxsplit=1) for line in _read_text(folder / "memory.stat").splitlines())
    # The page cache counts as free: the kernel reclaims it before it kills.
    cached = sum(int(entries.get(f"{version.prefix}{state}_file", 0)) for state in ("active", "inactive"))
    text = f"under the cgroup's limit of {format_bytes(int(limit))}"
    return FreeMemory(max(0, int(limit) - int(usage) + cached), text)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
