"""An invalid Ray address is a one-line error, before Ray tries to connect for minutes."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from facts import assert_facts

from teacher_cache.distributed import ray_cluster as cluster
from teacher_cache.distributed.ray_cluster import Node, Resources, ray_session
from teacher_cache.errors import ClusterError


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_other_server_at_the_ray_address_is_reported_at_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_SECONDS", 0.5)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Server(ThreadingHTTPServer):
        address_family = family

    with (
        Server((host, 0), BaseHTTPRequestHandler) as web,
        socket.create_server((host, 0), family=family) as silent,
    ):
        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        for port in (web.server_port, silent.getsockname()[1]):
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            began = time.monotonic()
            with pytest.raises(ClusterError) as caught, ray_session(address):
                pass
            assert_facts(caught.value, f"'{address}'", "HOST:PORT")
            assert time.monotonic() - began < 5
        monkeypatch.setenv("RAY_USE_TLS", "1")
        cluster._check_address(address)  # with TLS the protocol cannot be checked without certificates
        web.shutdown()


@pytest.mark.parametrize("address", ["head", "[::1]", "head:", "head:ray", ":6379"])
def test_address_without_host_or_port_is_reported(address: str) -> None:
    with pytest.raises(ClusterError) as caught, ray_session(address):
        pass
    assert_facts(caught.value, f"'{address}'", "HOST:PORT", 6379)
    for itself in ("auto", "local", ""):
        cluster._check_address(itself)


@pytest.mark.parametrize(
    ("cluster_nodes", "device", "workers", "expected"),
    [
        ([(16, 1)], "auto", None, Resources(cpus=16, gpus=1)),
        ([(64, 8), (16, 1), (96, 8)], "cuda", None, Resources(cpus=8, gpus=1)),
        ([(16, 1), (128, 0)], "auto", None, Resources(cpus=16, gpus=1)),
        ([(2, 1)], "auto", None, Resources(cpus=2, gpus=1)),
        ([(64, 0)], "auto", None, Resources(cpus=2, gpus=0)),
        ([(64, 8)], "cpu", None, Resources(cpus=2, gpus=0)),
        ([(64, 8)], "auto", 3, Resources(cpus=4, gpus=1)),
        ([(64, 0)], "auto", 0, Resources(cpus=1, gpus=0)),
    ],
)
def test_without_a_number_of_workers_a_process_has_the_cpus_of_its_gpu(
    cluster_nodes: list[tuple[int, int]],
    device: str,
    workers: int | None,
    expected: Resources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [Node(str(number), "", *has) for number, has in enumerate(cluster_nodes)]
    monkeypatch.setattr(cluster, "nodes", lambda: nodes)
    found = cluster.require_capacity("job", device, workers, 1, "--actors")
    assert found == expected and found.workers == expected.cpus - 1
