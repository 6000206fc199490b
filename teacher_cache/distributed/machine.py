"""The cores and the memory that this process may use: those of the machine, or less in a container.

A cgroup limits its processes and those of its children, so the limits of the own group and of its parents count.
loky.cpu_count and Ray read only the group that is mounted at /sys/fs/cgroup, and psutil reads none.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")


def cores(root: Path = ROOT) -> int:
    """Number of CPU cores that this process may use: by its affinity (taskset, cpuset), and by CPU quotas.

    A fractional quota is rounded up, as Java and Go do: 0.5 is 1 core and 2.5 are 3. root: the folder / of the
    kernel's files.
    """
    quota = min((_cpu_quota(group) for group in _groups("cpu", root)), default=math.inf)
    return max(1, math.ceil(min(quota, len(os.sched_getaffinity(0)))))


def local_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Number of processes of this run on this machine, by torchrun's LOCAL_WORLD_SIZE; 1 without it."""
    count = environment.get("LOCAL_WORLD_SIZE", "")
    return max(int(count), 1) if count.isdecimal() else 1


def process_cores() -> int:
    """Number of CPU cores for each process of this run on this machine."""
    return max(cores() // local_processes(), 1)


def loader_workers(
    wanted: int | None, device_type: str, streams: int | None = None, own_cores: int | None = None
) -> int:
    """Number of loader processes of this process: `wanted`; by default, as many as its device can use.

    device_type: of the network. Beside a CPU it is 1: the network needs the cores, and views are a few percent of
    the time. Beside another device it is one for each core of this process but one.
    streams: what the workers share, each of them whole. Then it is the smallest number with which the busiest
    worker has as few streams as with one worker for each core: 8 for 8 streams on 8 or 16 cores, 4 on 7. The
    process itself needs little of a core.
    own_cores: None is `process_cores`.
    """
    if wanted is not None or device_type == "cpu":
        return 1 if wanted is None else wanted
    own_cores = own_cores or process_cores()
    if streams is None:
        return max(own_cores - 1, 1)
    most_streams = math.ceil(streams / own_cores)
    return math.ceil(streams / most_streams)


def memory_bytes(root: Path = ROOT) -> int:
    """Memory that this process may use in bytes: that of the machine, or the smallest limit of its cgroups."""
    limits = [limit for group in _groups("memory", root) for limit in _memory_limits(group)]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def limit_threads() -> None:
    """Limit the threads of this process and its children to `cores`, unless OMP_NUM_THREADS is set.

    Call it before torch and numpy are imported. Their own defaults are the affinity, without quotas: with a quota
    of 1 core on a machine of 64, they would start 64 threads, which the kernel stops most of the time.
    """
    if (count := cores()) < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(count))
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(count))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's group and its visible parents, in cgroup v1 and v2."""
    mounts = _read(root / "proc/self/mountinfo").splitlines()
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in mounts:
            fields, _, system = mount.partition(" - ")
            kind, _, options = system.split(" ", 2)
            is_mount = kind == "cgroup" and controller in options.split(",") if controllers else kind == "cgroup2"
            if is_mount:
                mounted, mount_point = fields.split(" ")[3:5]
                yield from _with_parents(path, mounted, root / mount_point.lstrip("/"))


def _with_parents(path: str, mounted: str, folder: Path) -> Iterator[Path]:
    """The folders from `folder`, the mount point of the group `mounted`, down to that of the group `path`.

    In a container, `path` may be outside `mounted`; then `mounted` is the closest visible group.
    """
    yield folder
    if ".." not in Path(path).parts and Path(path).is_relative_to(mounted):
        for name in Path(path).relative_to(mounted).parts:
            yield (folder := folder / name)


def _cpu_quota(group: Path) -> float:
    """CPU seconds per second; infinity without a quota."""
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = (_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return math.inf if quota in ("", "max", "-1") else int(quota) / int(period)


def _memory_limits(group: Path) -> Iterator[int]:
    """Limits in bytes. memory.stat of cgroup v1 has the smallest limit of the group and all its parents."""
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        if (limit := _read(group / name).strip()).isdecimal():
            yield int(limit)
    for line in _read(group / "memory.stat").splitlines():
        if line.startswith("hierarchical_memory_limit "):
            yield int(line.split()[1])


def _read(path: Path) -> str:
    """The text of a kernel's file; "" if this kernel or group does not have it."""
    with suppress(OSError):
        return path.read_text("utf-8", "surrogateescape")
    return ""
