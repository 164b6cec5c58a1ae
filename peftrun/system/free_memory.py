"""How much main memory this process can still take: the machine's, its cgroup's and its address space's limit. Light."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# Address space that a run takes beside what becomes resident, measured: 460 MB of libraries once they are imported, 200 MB of
# stacks and heaps of threads until the base is there.
UNTOUCHED = 660_000_000


@dataclass(frozen=True)
class Free:
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
class _Version:
    """Names of files of a version of cgroups. `prefix`: of the entries of memory.stat that count children too."""

    limit: str
    usage: str
    prefix: str


V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
V2 = _Version("memory.max", "memory.current", "")


def available() -> Free:
    """The least that any limit leaves."""
    return min(limits(), key=lambda free: free.bytes)


def limits() -> list[Free]:
    """What each limit leaves: of resident memory the narrowest, and of address space if it has one."""
    return [resident(), *filter(None, [address_space()])]


def resident(root: Path = Path("/")) -> Free:
    """What can still become resident: of the machine's memory, or of a cgroup's limit.

    Swap is not counted: a base in swap is too slow to be of use. `root`: the folder that holds proc/ and sys/.
    """
    return min((Free(psutil.virtual_memory().available), *_of_cgroups(root)), key=lambda free: free.bytes)


def address_space() -> Free | None:
    """What can still become resident below RLIMIT_AS, which counts also what is only mapped; None: there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    held = psutil.Process().memory_info()
    untouched = max(0, UNTOUCHED - (held.vms - held.rss))
    return Free(max(0, limit - held.vms - untouched), "under ulimit -v", counts_mapped=True)


def _of_cgroups(root: Path) -> Iterator[Free]:
    """What the limit of this process's cgroup leaves, and that of each above it."""
    for mount, path, version in _memberships(root):
        for folder in (path, *path.parents):
            if folder.is_relative_to(mount) and (free := _left(folder, version)) is not None:
                yield free


def _memberships(root: Path) -> Iterator[tuple[Path, Path, _Version]]:
    """Where cgroups that count memory are mounted, and the one of this process there."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own = path.lstrip("/") if ".." not in path else ""  # of another namespace: only the mount is seen here
        if not controllers:
            yield mount, mount / own, V2
        elif "memory" in controllers.split(","):
            yield mount / "memory", mount / "memory" / own, V1


def _left(folder: Path, version: _Version) -> Free | None:
    """None: the cgroup is not there or has no limit. Pages of files count as free: the kernel takes them back before it kills."""
    limit, usage = _text(folder / version.limit).strip(), _text(folder / version.usage).strip()
    if not limit.isdigit() or not usage.isdigit():  # `max`
        return None
    entries = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines())
    files = sum(int(entries.get(f"{version.prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return Free(max(0, int(limit) - int(usage) + files), f"under the cgroup's limit of {int(limit) / 1e9:.2f} GB")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
