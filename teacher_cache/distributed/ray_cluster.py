"""A Ray cluster as its driver sees it: how to join it, what its nodes have, what its workers answer."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_cache.console import count_of, log_line
from teacher_cache.errors import ClusterError, LimbeckError

ENGINE = "ray"
CONNECT_TIMEOUT_SECONDS = 5.0
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to Ray's makers
    "RAY_NUM_REDIS_GET_RETRIES": "2",  # of asking an address where something else than Ray answers
}


@dataclass(frozen=True)
class Resources:
    """What one worker takes of its node."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{self.cpus} CPU" + ("s" if self.cpus != 1 else "") + (f" and {self.gpus} GPU" * (self.gpus > 0))


@dataclass(frozen=True)
class Node:
    """A machine that is in the cluster now, with all that it has, in use or not."""

    id: str
    address: str
    cpus: float
    gpus: float

    def capacity(self, resources: Resources) -> int:
        """How many workers it holds."""
        by_cpus = int(self.cpus // resources.cpus)
        return min(by_cpus, int(self.gpus // resources.gpus)) if resources.gpus else by_cpus


def parse_engine(option: str) -> str | None:
    """The address in "ray=ADDRESS"; None for "ray", where Ray finds, or starts, a cluster by itself."""
    engine, separator, address = option.partition("=")
    if engine != ENGINE or (separator and not address):
        raise ClusterError(f"--on '{option}' is no engine; give --on ray or --on ray=HOST:PORT")
    return address or None


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Be a driver of the cluster at an address; without one of RAY_ADDRESS's, else this machine's own.

    Raises ClusterError where Ray is not installed or does not answer.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import grpc  # noqa: F401
        import ray
    except ImportError as error:
        raise ClusterError(f"{error.name} is not installed here; pip install 'limbeck[ray]'") from None
    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or ""
    _check_address(target)
    log_line(f"joining Ray at {target}" if target else "starting Ray on this machine")
    with Path(os.devnull).open("w") as null, redirect_stdout(null):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (Exception, SystemExit) as error:  # another version, a wrong token, no cluster
            reason = " ".join(str(error).split())[:300]
            where = f"at '{address}'" if address else "on this machine"
            raise ClusterError(f"no Ray can be used {where}: {reason}; see `ray status`") from None
        try:
            yield
        finally:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raises ClusterError where nothing listens, or what is no Ray; Ray itself would ask for minutes."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"'{address}' is for Ray's client; run limbeck inside the cluster, with the head's HOST:PORT (6379)"
        )
    if address in ("", "auto", "local"):
        return  # Ray looks by itself
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        missing = "host" if address.startswith(":") else "port"
        raise ClusterError(f"'{address}' names no {missing}; give the head's HOST:PORT, 6379 is the usual one")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(
            f"no Ray at '{address}' ({error}); begin one with `ray start --head`, or mend the address"
        ) from None
    uses_tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    if not uses_tls and not _is_grpc_server(address):
        raise ClusterError(
            f"no Ray at '{address}': something else answers there; give the head's HOST:PORT (6379)"
        )


def _is_grpc_server(address: str) -> bool:
    """Whether a gRPC server answers there within REACH_SECONDS, as a Ray head does."""
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True


def nodes() -> list[Node]:
    """Those that are alive, in the order of their addresses."""
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


def require_capacity(table: str, device: str, workers: int, processes: int, option: str) -> Resources:
    """What each process of a job takes of its node, as the recipe's table has it: a CPU for each worker and one
    more, and a GPU if the device is one.

    Raises ClusterError where the cluster, as it is now, does not hold `processes` of them, the option's number.
    """
    cluster = nodes()
    gpus = int(sum(node.gpus for node in cluster))
    on_gpu = device.startswith("cuda") or (device == "auto" and gpus > 0)
    resources = Resources(cpus=workers + 1, gpus=int(on_gpu))
    capacity = sum(node.capacity(resources) for node in cluster)
    if capacity >= processes:
        return resources
    cpus = int(sum(node.cpus for node in cluster))
    has = (
        f"the cluster has {count_of(cpus, 'CPU')} and {count_of(gpus, 'GPU')} on {count_of(len(cluster), 'node')}"
    )
    requires = (
        f"each process takes {resources} of a node ({table}.device = '{device}', {table}.workers = {workers})"
    )
    advice = f"add nodes, or lower {table}.workers"
    if on_gpu and not gpus:
        advice = f"add nodes with GPUs, or set {table}.device = cpu"
    elif capacity:
        advice = f"add nodes, or lower {option} to {capacity}"
    raise ClusterError(f"{has}, which is room for {capacity} of {processes}: {requires}; {advice}")


def get_result(reference: Any) -> Any:
    """What a remote call returned; a LimbeckError that it raised comes out as it was."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LimbeckError):
            raise error.cause from None
        raise


def change_folder(folder: str) -> None:
    """Make relative paths mean what they mean to the driver, on machines that have its folder."""
    with suppress(OSError):
        os.chdir(folder)
