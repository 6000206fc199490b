"""Ray cluster from the driver's side: session, nodes, capacity and results."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_cache.console import count_of, log_line
from teacher_cache.distributed.machine import cores
from teacher_cache.errors import ClusterError, LimbeckError

ENGINE = "ray"
CONNECT_TIMEOUT_SECONDS = 5.0
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no usage reports
    "RAY_NUM_REDIS_GET_RETRIES": "2",  # few retries if another server listens at the address
}


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs that one process reserves on its node."""

    cpus: int
    gpus: int

    @property
    def workers(self) -> int:
        """Number of loader processes of the process."""
        return self.cpus - 1

    def __str__(self) -> str:
        return f"{self.cpus} CPU" + ("s" if self.cpus != 1 else "") + (f" and {self.gpus} GPU" * (self.gpus > 0))


@dataclass(frozen=True)
class Node:
    """A machine of the cluster with its total resources, used and free."""

    id: str
    address: str
    cpus: float
    gpus: float

    def capacity(self, resources: Resources) -> int:
        """Number of processes with these resources that the node can run."""
        by_cpus = int(self.cpus // resources.cpus)
        return min(by_cpus, int(self.gpus // resources.gpus)) if resources.gpus else by_cpus


def parse_engine(option: str) -> str | None:
    """The address in "ray=ADDRESS"; None for "ray", i.e. RAY_ADDRESS or this machine."""
    engine, separator, address = option.partition("=")
    if engine != ENGINE or (separator and not address):
        raise ClusterError(f"--on '{option}' is invalid; give --on ray or --on ray=HOST:PORT")
    return address or None


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect as a driver to the cluster at an address; None: at RAY_ADDRESS, or start Ray on this machine.

    Raises ClusterError if Ray is not installed or the cluster cannot be reached.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import grpc  # noqa: F401
        import ray
    except ImportError as error:
        raise ClusterError(f"{error.name} is not installed; pip install 'limbeck[ray]'") from None
    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or ""
    _check_address(target)
    log_line(f"connecting to Ray at {target}" if target else "starting Ray on this machine")
    with Path(os.devnull).open("w", encoding="utf-8") as null, redirect_stdout(null):
        try:
            _init_ray(address, starts_here=target in ("", "local"))
        except (Exception, SystemExit) as error:  # version mismatch, wrong token, no cluster
            reason = " ".join(str(error).split())[:300]
            where = f"at '{address}'" if address else "on this machine"
            raise ClusterError(f"Ray cannot be used {where}: {reason}; check `ray status`") from None
        try:
            yield
        finally:
            ray.shutdown()


def _init_ray(address: str | None, starts_here: bool) -> None:
    """Connect to a cluster, or start Ray with the cores of this process: Ray itself ignores the affinity."""
    import ray

    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(**options, num_cpus=cores() if starts_here else None)
    except ValueError:  # Ray has found a cluster on this machine, which has its own number of CPUs
        if not starts_here:
            raise
        ray.init(**options)


def _check_address(address: str) -> None:
    """Raise ClusterError if no Ray head listens at the address. Ray itself would retry for minutes."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"'{address}' is for Ray Client; run limbeck on a node of the cluster with the head's HOST:PORT (6379)"
        )
    if address in ("", "auto", "local"):
        return  # Ray finds the cluster itself
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        missing = "host" if address.startswith(":") else "port"
        raise ClusterError(f"'{address}' has no {missing}; give the head's HOST:PORT (default port 6379)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(
            f"no Ray at '{address}' ({error}); start one with `ray start --head`, or correct the address"
        ) from None
    uses_tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    if not uses_tls and not _is_grpc_server(address):
        raise ClusterError(
            f"no Ray at '{address}': another server listens at it; give the head's HOST:PORT (6379)"
        )


def _is_grpc_server(address: str) -> bool:
    """Whether a gRPC server, such as a Ray head, answers within CONNECT_TIMEOUT_SECONDS."""
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True


def nodes() -> list[Node]:
    """Nodes that are alive, sorted by address."""
    import ray

    found = [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: (node.address, node.id))


def require_capacity(table: str, device: str, workers: int | None, processes: int, option: str) -> Resources:
    """Resources of each process of a job: one CPU, one more per worker, and a GPU if the device is one.

    table: recipe table with the keys device and workers. workers: None for one on CPUs, and for as many beside a
    GPU as every node with GPUs has CPUs for each of them. option: command-line option that sets `processes`.
    Raises ClusterError if the cluster has too few resources for `processes` of them.
    """
    cluster = nodes()
    gpus = int(sum(node.gpus for node in cluster))
    on_gpu = device.startswith("cuda") or (device == "auto" and gpus > 0)
    if workers is None:
        shares = [int(node.cpus // node.gpus) for node in cluster if node.gpus >= 1]
        workers = max(min(shares, default=0) - 1, 1) if on_gpu else 1
    resources = Resources(cpus=workers + 1, gpus=int(on_gpu))
    capacity = sum(node.capacity(resources) for node in cluster)
    if capacity >= processes:
        return resources
    cpus = int(sum(node.cpus for node in cluster))
    has = (
        f"the cluster has {count_of(cpus, 'CPU')} and {count_of(gpus, 'GPU')} on {count_of(len(cluster), 'node')}"
    )
    requires = (
        f"each process needs {resources} on one node ({table}.device = '{device}', {table}.workers = {workers})"
    )
    advice = f"add nodes, or lower {table}.workers"
    if on_gpu and not gpus:
        advice = f"add nodes with GPUs, or set {table}.device = cpu"
    elif capacity:
        advice = f"add nodes, or lower {option} to {capacity}"
    raise ClusterError(f"{has}, enough for {capacity} of {processes} processes: {requires}; {advice}")


def get_result(reference: Any) -> Any:
    """The result of a remote call. A LimbeckError of the call is raised as itself, not as RayTaskError."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LimbeckError):
            raise error.cause from None
        raise


def change_folder(folder: str) -> None:
    """Change to the driver's folder if this machine has it, so that relative paths have the same meaning."""
    with suppress(OSError):
        os.chdir(folder)
