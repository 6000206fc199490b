"""Temporary network faults lose and duplicate nothing; a permanent fault is a one-line error."""

import os
import socket
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.request import Request, urlopen

import pytest
from facts import assert_facts
from fault_proxy import FAULTS, FaultProxy
from werkzeug.serving import generate_adhoc_ssl_context

from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.shards import fetch, read_shard
from teacher_cache.errors import EXIT_TRANSIENT, EXIT_USER_ERROR, LimbeckError, ShardError, StoreError
from teacher_cache.storage import object_store as bucket
from teacher_cache.storage import retry
from teacher_cache.storage.store import open_store

LARGE = 6 * 2**20
"""Bytes; an object of this size is uploaded in two parts."""


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_survives_a_fault(proxy: FaultProxy, new_bucket: Callable[[], str], fault: str) -> None:
    store = open_store(f"{new_bucket()}/a")
    with proxy.breaking(fault, only=0):
        store.put("small", b"data")
    with proxy.breaking(fault, only=0):
        assert store.get("small") == b"data"
    with proxy.breaking(fault, only=0):
        assert store.create("marker", b"mine")
    with proxy.breaking(fault, only=0):
        assert not store.create("marker", b"another's") and store.get("marker") == b"mine"
    with proxy.breaking(fault, only=0):
        assert store.sizes("") == {"small": 4, "marker": 4}
    with proxy.breaking(fault, only=0):
        store.remove("marker")
    assert store.names("") == {"small"}
    assert [struck for _, _, struck in proxy.seen if struck] == 6 * [fault]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_large_object_survives_a_fault_in_each_of_its_requests(
    proxy: FaultProxy, new_bucket: Callable[[], str], fault: str
) -> None:
    """Requests: start, two parts, complete; then read."""
    store = open_store(f"{new_bucket()}/a")
    for number in range(4):
        data = os.urandom(LARGE)
        with proxy.breaking(fault, only=number):
            store.put("large", data)
        assert store.get("large") == data
    with proxy.breaking(fault, only=0):
        assert store.get("large") == data
    assert [struck for _, _, struck in proxy.seen if struck] == 5 * [fault]


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_over_http_survives_a_fault(
    shards: ShardIndex, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacher_cache.storage.download.HTTP_TIMEOUT_SECONDS", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=shards.folder)) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with FaultProxy(f"http://127.0.0.1:{server.server_port}").running() as proxy:
            with proxy.breaking(fault):
                index = load_index(proxy.url)
                assert [read_shard(index, n) for n in range(3)] == [read_shard(shards, n) for n in range(3)]
            assert proxy.faults() == {fault} and len(proxy.asked(".tar")) == 6
            before = len(proxy.seen)
            with pytest.raises(ShardError, match="404"):
                load_index(f"{proxy.url}/nowhere")
            assert len(proxy.seen) == before + 1  # an HTTP answer is not retried
        server.shutdown()


def test_permanent_failure_is_reported_after_a_few_attempts(
    proxy: FaultProxy, new_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bucket.RETRY, "max_retries", 2)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    store = open_store(new_bucket())
    for fault, fact in (("500", "InternalError"), ("refused", proxy.url)):
        with proxy.breaking(fault, every=1):
            for act in (lambda: store.put("a", b"a"), lambda: store.get("a"), lambda: store.sizes("")):
                with pytest.raises(StoreError) as caught:
                    act()
                assert_facts(caught.value, fact)
                assert "\n" not in str(caught.value)


class Refusing(BaseHTTPRequestHandler):
    """Answers every PUT with the status set on its server."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(vars(self.server)["status"])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        *((answer, EXIT_TRANSIENT) for answer in (408, 429, 500, 502, 503, 504)),
        (501, EXIT_USER_ERROR),
        (505, EXIT_USER_ERROR),
        (403, EXIT_USER_ERROR),
    ],
)
def test_only_a_temporary_http_status_exits_with_75(
    answer: int, status: int, new_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """501 is permanent: it comes from a store without support for If-None-Match."""
    monkeypatch.setitem(bucket.RETRY, "max_retries", 0)
    url = new_bucket()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        vars(server)["status"] = answer
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StoreError) as caught:
            open_store(url).create("marker", b"mine")
        server.shutdown()
    assert caught.value.status == status, caught.value


def test_a_certificate_that_is_not_trusted_ends_with_2(
    new_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both for a bucket's endpoint and for plain HTTPS."""
    monkeypatch.setitem(bucket.RETRY, "max_retries", 0)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    url = new_bucket()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.socket = generate_adhoc_ssl_context().wrap_socket(server.socket, server_side=True)
        monkeypatch.setattr(server, "handle_error", lambda *_: None)  # the client closes the connection
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.server_port}")
        for place in (f"{url}/a.tar", f"https://127.0.0.1:{server.server_port}/a.tar"):
            with pytest.raises(LimbeckError, match="certificate") as caught:
                fetch(place)
            assert caught.value.status == EXIT_USER_ERROR
        server.shutdown()


def test_a_server_that_never_answers_is_named(
    new_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bucket.TIMEOUTS, "read_timeout", "100ms")
    monkeypatch.setitem(bucket.RETRY, "max_retries", 1)
    monkeypatch.setattr(retry, "MAX_TOTAL_SECONDS", 0.1)
    url = new_bucket()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreError, match=f"http://127.0.0.1:{silent.getsockname()[1]}"):
            load_index(url)


def test_missing_or_refused_keys_are_reported(shards_in_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The S3 server checks keys only while its switch is on."""
    switch = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    plain = {"Content-Type": "text/plain"}
    urlopen(Request(switch, data=b"0", headers=plain)).close()
    try:
        with pytest.raises(StoreError) as refused:
            load_index(shards_in_bucket)
        assert_facts(refused.value, f"'{shards_in_bucket}/index.json'", "InvalidAccessKeyId")
    finally:
        urlopen(Request(switch, data=b"1000000", headers=plain)).close()
    assert len(load_index(shards_in_bucket).shards) == 3
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(bucket, "RETRY", bucket.RETRY | {"max_retries": 0})
    monkeypatch.setitem(bucket.TIMEOUTS, "connect_timeout", "1 second")
    with pytest.raises(StoreError) as missing:
        load_index(shards_in_bucket)
    assert_facts(missing.value, shards_in_bucket, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
