"""What limits the memory of a process: its cgroup and those above, in both versions, and its address space."""

import resource

import psutil
from cases import cases

from peftrun.formatting import parse_bytes
from peftrun.system import free_memory
from peftrun.system.free_memory import FreeMemory

GB = 10**9
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
V2 = ("memory.max", "memory.current", "")
NONE = 9223372036854771712  # what version 1 says where there is no limit


def system(root, membership, groups, version=V2):
    """The files of a system that put this process into a cgroup. `groups`: folder → limit, usage, pages of files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    limit, usage, prefix = version
    for folder, (most, used, files) in groups.items():
        where = root / "sys/fs/cgroup" / folder
        where.mkdir(parents=True, exist_ok=True)
        (where / limit).write_text(f"{most}\n")
        (where / usage).write_text(f"{used}\n")
        (where / "memory.stat").write_text(
            f"anon 5\n{prefix}inactive_file {files}\n{prefix}active_file 7\nslab_reclaimable 3\n"
        )
    return root


@cases(
    "membership,version,groups,left",
    [
        ("0::/a/b\n", V2, {"a/b": (4000, 1500, 500)}, 3007),
        ("0::/a/b\n", V2, {"a/b": ("max", 1500, 0), "a": (3000, 2000, 0)}, 1007),  # the one above is narrower
        ("0::/a/b\n", V2, {"a/b": (4000, 1500, 500), "a": (3000, 2000, 0)}, 1007),
        ("0::/\n", V2, {"": (4000, 1000, 0)}, 3007),  # a container that sees itself as the root
        ("0::/../other\n", V2, {"": (4000, 1000, 0)}, 3007),
        ("4:memory:/a\n0::/\n", V1, {"memory/a": (4000, 1500, 500)}, 3007),
        ("4:cpu,memory:/docker/1\n", V1, {"memory": (4000, 1500, 500)}, 3007),  # only the container's own is mounted
        ("4:memory:/a\n", V1, {"memory/a": (4000, 1500, 0), "memory": (NONE, 1, 0)}, 2507),
        ("0::/a\n", V2, {"a": (4000, 9000, 0)}, 0),
    ],
)
def test_the_narrowest_cgroup_counts(tmp_path, membership, version, groups, left):
    found = free_memory.get_resident_limit(system(tmp_path, membership, groups, version))
    assert found.bytes == left and found.limit.startswith("under the cgroup's limit of ")


@cases(
    "membership,version,groups",
    [
        ("0::/a\n", V2, {"a": ("max", 1500, 0)}), ("4:memory:/a\n", V1, {"memory/a": (NONE, 1500, 0)}),
        ("4:cpu:/a\n", V1, {"memory/a": (1, 1, 0)}), ("", V2, {}),
    ],
)  # fmt: skip
def test_without_a_limit_it_is_the_machines(tmp_path, membership, version, groups):
    found = free_memory.get_resident_limit(system(tmp_path, membership, groups, version))
    assert found.limit == "" and 0 < found.bytes <= psutil.virtual_memory().total


def test_a_limit_of_address_space_counts():
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert len(free_memory.list_memory_limits()) == (1 if before[0] == resource.RLIM_INFINITY else 2)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2 * GB, before[1]))
    try:
        found = free_memory.get_address_space_limit()
        assert free_memory.get_available_memory().bytes <= found.bytes
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert found.limit == "under ulimit -v" and found.counts_mapped
    assert 2 * GB - free_memory.UNTOUCHED_BYTES - GB / 10 < found.bytes <= 2 * GB


def test_it_is_told_for_people():
    assert (
        str(FreeMemory(12 * 10**8)) == "1.20 GB free"
        and str(FreeMemory(0, "under ulimit -v")) == "0 bytes free under ulimit -v"
    )


@cases("text, size", [("4GiB", 4 * 2**30), ("60KB", 60_000), ("7", 7), ("much", None), (None, None)])
def test_amounts_are_read(text, size):
    assert parse_bytes(text) == size
