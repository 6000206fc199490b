"""An address of a Ray cluster that is none is told in one line, before Ray asks there for minutes."""

import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from teacher_cache.distributed import ray_cluster as cluster
from teacher_cache.distributed.ray_cluster import ray_session
from teacher_cache.errors import ClusterError


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_something_else_than_ray_at_the_address_is_told_in_one_line_at_once(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_SECONDS", 0.5)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Server(ThreadingHTTPServer):
        address_family = family

    with Server((host, 0), BaseHTTPRequestHandler) as web, socket.create_server((host, 0), family=family) as mute:
        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        for port in (web.server_port, mute.getsockname()[1]):
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            began = time.monotonic()
            told = rf"^no Ray at '{re.escape(address)}': something else answers there; give the head's HOST:PORT"
            with pytest.raises(ClusterError, match=told), ray_session(address):
                pass
            assert time.monotonic() - began < 5
        monkeypatch.setenv("RAY_USE_TLS", "1")
        cluster._check_address(address)  # what it speaks is told to those alone who have its certificates
        web.shutdown()


@pytest.mark.parametrize("address", ["head", "[::1]", "head:", "head:ray", ":6379"])
def test_an_address_without_host_or_port_is_told(address: str) -> None:
    told = f"^'{re.escape(address)}' names no (port|host); give the head's HOST:PORT, 6379 is the usual one$"
    with pytest.raises(ClusterError, match=told), ray_session(address):
        pass
    for itself in ("auto", "local", ""):
        cluster._check_address(itself)
