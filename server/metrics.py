"""What Prometheus is told. One process counts for all: workers report with their answers, so no count is lost."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_MODEL = ("model", "version")


class ServerMetrics:
    """The counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        whole = self.registry

        def count(name: str, about: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"limbeck_{name}", about, labels, registry=whole)

        def gauge(name: str, about: str, labels: tuple[str, ...] = _MODEL) -> Gauge:
            return Gauge(f"limbeck_{name}", about, labels, registry=whole)

        def spread(name: str, about: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"limbeck_{name}", about, labels, registry=whole, buckets=buckets)

        self.requests = count("requests", "Requests answered", ("path", "status"))
        self.seconds = spread("request_seconds", "From header to answer", ("path",), _SECONDS)
        self.faults = count("faults", "Images without an answer, by reason", (*_MODEL, "reason"))
        self.decode_failures = count("decode_failures", "Images that no decoder could make sense of", _MODEL)
        self.restarts = count("worker_restarts", "Workers replaced", _MODEL)
        self.queued = spread("queued_seconds", "Waiting for a worker", _MODEL, _SECONDS)
        self.compute = spread("compute_seconds", "Of a batch", _MODEL, _SECONDS)
        self.batch = spread("batch_images", "In a batch", _MODEL, (1, 2, 4, 8, 16, 32))
        self.waiting = gauge("waiting_images", "Waiting for a worker")
        self.workers = gauge("workers", "That live and are ready")
        self.difference = gauge("model_difference", "Largest probability difference from torch float32")
        self.ready = gauge("ready", "1 where /readyz says 200", ())
        self.info = gauge("model_info", "1 while served", (*_MODEL, "sha256", "runtime", "device"))
        self._paths: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one answer. path: of the route, not what was asked for: those have no end."""
        both = self._paths.get((path, status))
        if both is None:
            both = self.requests.labels(path, status), self.seconds.labels(path)
            self._paths[path, status] = both
        both[0].inc()
        both[1].observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)

    def forget(self, name: str, version: str, counts: bool) -> None:
        """Stop telling how a model is that is no longer served; counts: and what it did."""
        told: list[Counter | Gauge | Histogram] = [self.waiting, self.workers, self.difference, self.info]
        if counts:
            told += [self.faults, self.decode_failures, self.restarts, self.queued, self.compute, self.batch]
        for metric in told:
            metric.remove_by_labels({"model": name, "version": version})
