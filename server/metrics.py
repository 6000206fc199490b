"""Prometheus metrics. Only the serving process counts; workers send their measurements with their results."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_MODEL = ("model", "version")


class ServerMetrics:
    """The metrics of one server, in a separate registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, description: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"limbeck_{name}", description, labels, registry=registry)

        def gauge(name: str, description: str, labels: tuple[str, ...] = _MODEL) -> Gauge:
            return Gauge(f"limbeck_{name}", description, labels, registry=registry)

        def histogram(
            name: str, description: str, labels: tuple[str, ...], buckets: tuple[float, ...]
        ) -> Histogram:
            return Histogram(f"limbeck_{name}", description, labels, registry=registry, buckets=buckets)

        self.requests = counter("requests", "Answered requests", ("path", "status"))
        self.seconds = histogram(
            "request_seconds", "Time from a request's header to its answer", ("path",), _SECONDS
        )
        self.faults = counter("faults", "Failed images, by reason", (*_MODEL, "reason"))
        self.decode_failures = counter("decode_failures", "Images that could not be decoded", _MODEL)
        self.restarts = counter("worker_restarts", "Replaced workers", _MODEL)
        self.queued = histogram("queued_seconds", "Time that an image waited for a worker", _MODEL, _SECONDS)
        self.compute = histogram(
            "compute_seconds", "Time from sending a batch to a worker to its results", _MODEL, _SECONDS
        )
        self.batch = histogram("batch_images", "Images per batch", _MODEL, (1, 2, 4, 8, 16, 32))
        self.waiting = gauge("waiting_images", "Images that wait for a worker")
        self.workers = gauge("workers", "Workers that are ready")
        self.difference = gauge("model_difference", "Largest probability difference from torch float32")
        self.ready = gauge("ready", "1 if /readyz returns 200, otherwise 0", ())
        self.info = gauge("model_info", "1 while the model is loaded", (*_MODEL, "sha256", "runtime", "device"))
        self._by_path: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        """A cache: prometheus_client's lookup by labels takes longer."""

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one answer. path: the path of the route, because the number of requested paths is unlimited."""
        metrics = self._by_path.get((path, status))
        if metrics is None:
            metrics = self.requests.labels(path, status), self.seconds.labels(path)
            self._by_path[path, status] = metrics
        requests, durations = metrics
        requests.inc()
        durations.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def remove(self, name: str, version: str, with_counters: bool) -> None:
        """Remove the gauges of a model that is no longer loaded, and optionally its counters and histograms."""
        metrics: list[Counter | Gauge | Histogram] = [self.waiting, self.workers, self.difference, self.info]
        if with_counters:
            metrics += [self.faults, self.decode_failures, self.restarts, self.queued, self.compute, self.batch]
        for metric in metrics:
            metric.remove_by_labels({"model": name, "version": version})
