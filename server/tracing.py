"""OpenTelemetry's spans: what each request waited for, and what it took. Nobody who asks for none loads them."""

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
    """What OpenTelemetry's own variables ask for; None where they name no endpoint. Raises LimbeckError."""
    if not any(environment.get(name) for name in ENDPOINTS) or environment.get("OTEL_SDK_DISABLED") == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise LimbeckError(
            f"{ENDPOINTS[1]} asks for traces, and {error.name} is not installed; "
            "install limbeck[otel], or unset the variable"
        ) from None
    named = {} if environment.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "limbeck"}
    provider = TracerProvider(resource=Resource.create(named))  # not the global one, which FastAPI uses
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("limbeck")


class Trace:
    """The span of one request, within its client's (traceparent), and below it two for each image.

    Times are perf_counter's seconds.
    """

    def __init__(self, tracer: "Tracer", headers: Mapping[bytes, bytes], began: float) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        client = TraceContextTextMapPropagator().extract(sent)
        self._tracer, self._epoch = tracer, time.time_ns() - time.perf_counter_ns()
        self._span = tracer.start_span("request", client, SpanKind.SERVER, start_time=self._at(began))
        self._within = set_span_in_context(self._span)

    def image(self, arrived: float, began: float) -> None:
        """An image waited from `arrived` until `began`, and was at work until now."""
        for name, start, end in (("queue", arrived, began), ("compute", began, time.perf_counter())):
            self._tracer.start_span(name, self._within, start_time=self._at(start)).end(self._at(end))

    def end(self, method: str, route: str, status: int) -> None:
        """The request is answered."""
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{method} {route}")
        told: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
        self._span.set_attributes(told)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    def _at(self, seconds: float) -> int:
        """Nanoseconds since 1970."""
        return self._epoch + int(1e9 * seconds)


current: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""Of the request that is being answered."""
