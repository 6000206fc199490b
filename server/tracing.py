"""OpenTelemetry spans of requests: waiting and computing. OpenTelemetry is imported only if tracing is enabled."""

import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from teacher_cache.errors import LimbeckError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def open_tracer(environment: Mapping[str, str] = os.environ) -> "Tracer | None":
    """A tracer as OpenTelemetry's environment variables configure it; None if they set no endpoint.

    Raises LimbeckError if they do but OpenTelemetry is not installed.
    """
    if not any(environment.get(name) for name in ENDPOINTS) or environment.get("OTEL_SDK_DISABLED") == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise LimbeckError(
            f"{ENDPOINTS[1]} enables tracing, but {error.name} is not installed; "
            "install limbeck[otel], or unset the variable"
        ) from None
    attributes = {} if environment.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "limbeck"}
    provider = TracerProvider(resource=Resource.create(attributes))  # not the global provider, which FastAPI uses
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("limbeck")


class Trace:
    """The span of one request, a child of the client's span (traceparent), with two child spans for each image.

    All times are in seconds of time.perf_counter().
    """

    def __init__(self, tracer: "Tracer", headers: Mapping[bytes, bytes], start: float) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        text_headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        client = TraceContextTextMapPropagator().extract(text_headers)
        self._tracer, self._epoch = tracer, time.time_ns() - time.perf_counter_ns()
        self._span = tracer.start_span("request", client, SpanKind.SERVER, start_time=self._nanoseconds(start))
        self._context = set_span_in_context(self._span)

    def add_image(self, arrived: float, started: float) -> None:
        """Add the spans "queue", from `arrived` to `started`, and "compute", from `started` until now."""
        for name, start, end in (("queue", arrived, started), ("compute", started, time.perf_counter())):
            self._tracer.start_span(name, self._context, start_time=self._nanoseconds(start)).end(
                self._nanoseconds(end)
            )

    def end(self, method: str, route: str, status: int) -> None:
        """End the request's span."""
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{method} {route}")
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
        self._span.set_attributes(attributes)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    def _nanoseconds(self, seconds: float) -> int:
        """Convert to nanoseconds since 1970."""
        return self._epoch + int(1e9 * seconds)


current_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the current request; None if tracing is disabled."""
