"""A limit of the container, of the scheduler or of a parent group counts like a smaller machine."""

import math
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.distributed.machine import (
    cores,
    loader_workers,
    local_processes,
    memory_bytes,
    process_cores,
)

GIB = 2**30
TOTAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
Fake = Callable[[dict[str, str]], Path]
V2 = "29 23 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 /docker/4f /sys/fs/cgroup/cpu,cpuacct ro,relatime master:11 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 /docker/4f /sys/fs/cgroup/memory ro,relatime master:12 - cgroup cgroup rw,memory
33 30 0:29 /docker/4f /sys/fs/cgroup/systemd ro,relatime - cgroup cgroup rw,name=systemd
"""


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process have the affinity of a machine with 64 cores, which the kernel refuses on a smaller one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


@pytest.fixture
def fake(tmp_path: Path, many_cores: None) -> Fake:
    """Write the kernel's files under a folder that stands for /."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def v2(group: str = "/", **files: str) -> dict[str, str]:
    """A machine with cgroup v2. files: text by "GROUP/NAME" below the mount point, "cpu__max" for "cpu.max"."""
    kernel = {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": V2}
    return kernel | {f"sys/fs/cgroup/{name.replace('__', '.')}": f"{text}\n" for name, text in files.items()}


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 64),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("250000 100000", 3),
        ("800000 100000", 8),
        ("1000 100000", 1),
        ("40000 10000", 4),  # another period
        ("9900000 100000", 64),  # more than the machine
    ],
)
def test_a_cpu_quota_is_a_number_of_cores_rounded_up(quota: str, expected: int, fake: Fake) -> None:
    assert cores(fake(v2(cpu__max=quota))) == expected


def test_the_smallest_limit_of_the_group_and_its_parents_counts(fake: Fake) -> None:
    """systemd and Kubernetes set limits on slices and pods, and the group of the process itself has none."""
    root = fake(
        v2(
            "/kubepods.slice/pod7/c1",
            **{
                "kubepods.slice/cpu__max": "1600000 100000",
                "kubepods.slice/pod7/cpu__max": "200000 100000",
                "kubepods.slice/pod7/c1/cpu__max": "max 100000",
                "kubepods.slice/memory__max": "max",
                "kubepods.slice/pod7/memory__max": str(GIB),
                "kubepods.slice/pod7/c1/memory__max": "max",
                "kubepods.slice/other/cpu__max": "100000 100000",
            },
        )
    )
    assert (cores(root), memory_bytes(root)) == (2, GIB)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory__max": "max"}, TOTAL),
        ({"memory__max": str(GIB // 2)}, GIB // 2),
        ({"memory__max": "max", "memory__high": str(GIB // 4)}, GIB // 4),
        ({"memory__max": str(2**60)}, TOTAL),
        ({}, TOTAL),
    ],
)
def test_a_memory_limit_is_the_memory(files: dict[str, str], expected: int, fake: Fake) -> None:
    assert memory_bytes(fake(v2(**files))) == expected


def test_cgroup_v1_in_a_container_has_its_own_group_at_the_mount_point(fake: Fake) -> None:
    root = fake(
        {
            "proc/self/cgroup": "12:cpu,cpuacct:/docker/4f\n7:memory:/docker/4f\n1:name=systemd:/x\n0::/x\n",
            "proc/self/mountinfo": V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.stat": f"cache 0\nhierarchical_memory_limit {GIB // 8}\n",
        }
    )
    assert (cores(root), memory_bytes(root)) == (2, GIB // 8)


def test_cgroup_v1_without_limits_is_the_machine(fake: Fake) -> None:
    root = fake(
        {
            "proc/self/cgroup": "12:cpu,cpuacct:/user.slice\n7:memory:/user.slice\n",
            "proc/self/mountinfo": V1.replace("/docker/4f", "/"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/user.slice/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/user.slice/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/user.slice/memory.limit_in_bytes": "9223372036854771712\n",
        }
    )
    assert (cores(root), memory_bytes(root)) == (64, TOTAL)


@pytest.mark.parametrize("group", ["/../../system.slice", "/elsewhere/c1", "/"])
def test_a_group_outside_the_mounted_ones_has_the_limits_of_the_mount_point(group: str, fake: Fake) -> None:
    files = v2(group, cpu__max="300000 100000", memory__max=str(GIB))
    files["proc/self/mountinfo"] = V2.replace(" / /sys", " /docker/c2 /sys")
    assert (cores(fake(files)), memory_bytes(fake(files))) == (3, GIB)


def test_a_system_without_cgroups_has_its_affinity(fake: Fake) -> None:
    root = fake({"proc/self/mountinfo": "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"})
    assert (cores(root), memory_bytes(root)) == (64, TOTAL)


def test_a_mount_with_any_name_can_be_read(fake: Fake) -> None:
    root = fake(v2(cpu__max="200000 100000"))
    (root / "proc/self/mountinfo").write_bytes(b"22 1 8:1 / /mnt/B\xfccher rw - ext4 /dev/sda1 rw\n" + V2.encode())
    assert cores(root) == 2


LIMITS = """
import os
from pathlib import Path

{before}
from teacher_cache.distributed.machine import cores, limit_threads, memory_bytes

limit_threads()
import torch

from server.settings import default_workers

workers = default_workers("cpu", cores(), memory_bytes())
print(cores(), workers, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", "-"))
"""


def limits_of_a_process(before: str, **environment: str) -> list[str]:
    """Cores, workers of a server, threads of torch and OMP_NUM_THREADS in a process that runs `before` first."""
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", LIMITS.format(before=before)]
    return subprocess.run(
        command, env=clean | environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()


def test_a_process_on_one_core_has_one_worker_and_thread() -> None:
    core = min(os.sched_getaffinity(0))
    assert limits_of_a_process(f"os.sched_setaffinity(0, {{{core}}})") == ["1", "1", "1", "-"]


@pytest.fixture
def cpu_group() -> Iterator[Path]:
    """A new cgroup of this machine with a quota of half a core."""
    memberships = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    paths = [line.split(":")[2] for line in memberships if "cpu" in line.split(":")[1].split(",")]
    parent = Path("/sys/fs/cgroup/cpu", paths[0].lstrip("/")) if paths else Path("/sys/fs/cgroup")
    group = parent / f"limbeck-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot create a cgroup: {error.strerror}")
    try:
        name, quota = ("cpu.cfs_quota_us", "50000") if paths else ("cpu.max", "50000 100000")
        try:
            (group / name).write_text(quota)
        except OSError as error:
            pytest.skip(f"cannot set a CPU quota: {error.strerror}")
        yield group
    finally:
        group.rmdir()


def test_a_process_with_a_cpu_quota_has_one_worker_and_thread(cpu_group: Path) -> None:
    join = f"Path({str(cpu_group / 'cgroup.procs')!r}).write_text(str(os.getpid()))"
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("the machine has one core")
    assert limits_of_a_process(join) == ["1", "1", "1", "1"]
    assert limits_of_a_process(join, OMP_NUM_THREADS="2") == ["1", "1", "2", "2"]


@pytest.mark.parametrize(
    ("own_cores", "streams", "expected"),
    [
        (1, None, 1),
        (2, None, 1),
        (16, None, 15),
        (1, 8, 1),
        (2, 8, 2),  # the busiest worker has four streams; one worker would have eight
        (4, 8, 4),
        (8, 8, 8),
        (16, 8, 8),
        (16, 15, 15),
        (16, 16, 16),
        (8, 22, 8),  # three streams; seven workers would have four
        (12, 8, 8),
        (7, 8, 4),  # two streams, as with seven workers
        (64, 1, 1),
    ],
)
def test_beside_a_gpu_the_workers_follow_the_cores(own_cores: int, streams: int | None, expected: int) -> None:
    assert loader_workers(None, "cuda", streams, own_cores) == expected


@given(own_cores=st.integers(1, 256), streams=st.integers(1, 256))
def test_no_other_number_of_workers_is_faster_or_as_fast_with_fewer(own_cores: int, streams: int) -> None:
    def busiest(workers: int) -> int:
        return math.ceil(streams / workers)

    workers = loader_workers(None, "cuda", streams, own_cores)
    assert 1 <= workers <= min(own_cores, streams)
    assert busiest(workers) == busiest(own_cores) and (workers == 1 or busiest(workers - 1) > busiest(workers))


def test_on_a_cpu_there_is_one_worker_and_a_given_number_is_kept() -> None:
    assert loader_workers(None, "cpu", 8, 64) == 1
    assert [loader_workers(given, device, 8, 4) for given in (0, 1, 30) for device in ("cpu", "cuda")] == [
        *(0, 0, 1, 1, 30, 30)
    ]


@pytest.mark.parametrize(("value", "expected"), [(None, 1), ("8", 8), ("1", 1), ("0", 1), ("", 1), ("many", 1)])
def test_the_processes_of_a_run_share_the_cores(
    value: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {} if value is None else {"LOCAL_WORLD_SIZE": value}
    assert local_processes(environment) == expected
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert process_cores() == max(cores() // expected, 1)
