"""OpenTelemetry spans of a real server, received by a collector on loopback."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from facts import assert_facts
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.tracing import open_tracer
from teacher_cache.errors import LimbeckError

CLIENT_TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Run a collector; yield its URL and the list of (resource, span) that it receives."""
    spans: list[Any] = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in sent.resource_spans:
                spans.extend((resource.resource, span) for part in resource.scope_spans for span in part.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collect) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def test_request_has_spans_for_queueing_and_computing(
    start: Callable[..., Any],
    bundle_folder: Path,
    pictures: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collector() as (address, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        running = start(bundle_folder, "--workers", 1)
        traced = {"traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"}
        answer = httpx.post(f"{running.url}/v1/classify", content=pictures["jpeg"], headers=traced)
        assert httpx.post(f"{running.url}/v1/classify", content=b"no image").status_code == 400
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
        running.process.communicate()
    whole, queue, compute = (
        next(span for _, span in spans if span.name == name and span.trace_id.hex() == CLIENT_TRACE)
        for name in ("POST /v1/classify", "queue", "compute")
    )
    assert whole.parent_span_id.hex() == CLIENT_SPAN
    assert queue.parent_span_id == compute.parent_span_id == whole.span_id
    assert whole.start_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano
    assert queue.end_time_unix_nano == compute.start_time_unix_nano
    assert compute.end_time_unix_nano <= whole.end_time_unix_nano
    compute_ms = answer.json()["images"][0]["compute_ms"]
    assert compute_ms <= (compute.end_time_unix_nano - compute.start_time_unix_nano) / 1e6
    statuses = {
        attribute.value.int_value
        for _, span in spans
        for attribute in span.attributes
        if attribute.key == "http.response.status_code"
    }
    assert statuses == {200, 400}
    named = {attribute.value.string_value for resource, _ in spans for attribute in resource.attributes}
    assert "limbeck" in named


def test_sdk_is_not_imported_without_an_endpoint() -> None:
    asked = "import sys, server.serve, server.tracing; assert server.tracing.open_tracer({}) is None; "
    asked += (
        "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def test_endpoint_without_the_sdk_is_an_error_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(LimbeckError) as raised:
        open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    assert_facts(raised.value, "OTEL_EXPORTER_OTLP_ENDPOINT", "limbeck[otel]")
