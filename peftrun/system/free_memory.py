"""How much main memory this process can still take: the machine's, its cgroup's and its address space's limit. Light."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# Address space that a run takes beside what becomes resident, measured: 460 MB of libraries once they are imported, 200 MB of
# stacks and heaps of threads until the base is there.
UNTOUCHED_BYTES = 660_000_000


@dataclass(frozen=True)
class FreeMemory:
    """What can still be taken.

    Attributes:
        limit: what sets it, for people; empty: there is no more in the machine.
        counts_mapped: files that are only mapped count, too.
    """

    bytes: int
    limit: str = ""
    counts_mapped: bool = False

    def __str__(self) -> str:
        """`1.20 GB free under ulimit -v` (10⁹ bytes)."""
        return f"{self.bytes / 1e9:.2f} GB free{f' {self.limit}' if self.limit else ''}"


@dataclass(frozen=True)
class _CgroupVersion:
    """Names of files of a version of cgroups. `prefix`: of the entries of memory.stat that count children too."""

    limit: str
    usage: str
    prefix: str


CGROUP_V1 = _CgroupVersion("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
CGROUP_V2 = _CgroupVersion("memory.max", "memory.current", "")


def get_available_memory() -> FreeMemory:
    """The least that any limit leaves."""
    return min(list_memory_limits(), key=lambda free: free.bytes)


def list_memory_limits() -> list[FreeMemory]:
    """What each limit leaves: of resident memory the narrowest, and of address space if it has one."""
    return [get_resident_limit(), *filter(None, [get_address_space_limit()])]


def get_resident_limit(root: Path = Path("/")) -> FreeMemory:
    """What can still become resident: of the machine's memory, or of a cgroup's limit.

    Swap is not counted: a base in swap is too slow to be of use. `root`: the folder that holds proc/ and sys/.
    """
    return min((FreeMemory(psutil.virtual_memory().available), *_iter_cgroup_limits(root)), key=lambda free: free.bytes)


def get_address_space_limit() -> FreeMemory | None:
    """What can still become resident below RLIMIT_AS, which counts also what is only mapped; None: there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    held = psutil.Process().memory_info()
    untouched = max(0, UNTOUCHED_BYTES - (held.vms - held.rss))
    return FreeMemory(max(0, limit - held.vms - untouched), "under ulimit -v", counts_mapped=True)


def _iter_cgroup_limits(root: Path) -> Iterator[FreeMemory]:
    """What the limit of this process's cgroup leaves, and that of each above it."""
    for mount, path, version in _iter_memberships(root):
        for folder in (path, *path.parents):
            if folder.is_relative_to(mount) and (free := _read_cgroup_limit(folder, version)) is not None:
                yield free


def _iter_memberships(root: Path) -> Iterator[tuple[Path, Path, _CgroupVersion]]:
    """Where cgroups that count memory are mounted, and the one of this process there."""
    mount = root / "sys/fs/cgroup"
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own = path.lstrip("/") if ".." not in path else ""  # of another namespace: only the mount is seen here
        if not controllers:
            yield mount, mount / own, CGROUP_V2
        elif "memory" in controllers.split(","):
            yield mount / "memory", mount / "memory" / own, CGROUP_V1


def _read_cgroup_limit(folder: Path, version: _CgroupVersion) -> FreeMemory | None:
    """None: the cgroup is not there or has no limit. Pages of files count as free: the kernel takes them back before it kills."""
    limit, usage = _read_text(folder / version.limit).strip(), _read_text(folder / version.usage).strip()
    if not limit.isdigit() or not usage.isdigit():  # `max`
        return None
    entries = dict(line.split(maxsplit=1) for line in _read_text(folder / "memory.stat").splitlines())
    files = sum(int(entries.get(f"{version.prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return FreeMemory(max(0, int(limit) - int(usage) + files), f"under the cgroup's limit of {int(limit) / 1e9:.2f} GB")


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
