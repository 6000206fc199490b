"""What Prometheus is told. One process counts for all: workers report with their answers, so no count is lost."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_MODEL = ("model", "version")


class Metrics:
    """The counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        at = {"registry": self.registry}
        self.requests = Counter("limbeck_requests", "Requests answered", ("path", "status"), **at)
        self.seconds = Histogram(
            "limbeck_request_seconds", "From header to answer", ("path",), buckets=_SECONDS, **at
        )
        self.faults = Counter("limbeck_faults", "Images without an answer, by reason", (*_MODEL, "reason"), **at)
        self.queued = Histogram("limbeck_queued_seconds", "Waiting for a worker", _MODEL, buckets=_SECONDS, **at)
        self.compute = Histogram("limbeck_compute_seconds", "Of a batch", _MODEL, buckets=_SECONDS, **at)
        self.batch = Histogram("limbeck_batch_images", "In a batch", _MODEL, buckets=(1, 2, 4, 8, 16, 32), **at)
        self.waiting = Gauge("limbeck_waiting_images", "Waiting for a worker", _MODEL, **at)
        self.workers = Gauge("limbeck_workers", "That live and are ready", _MODEL, **at)
        self.restarts = Counter("limbeck_worker_restarts", "Workers replaced", _MODEL, **at)
        self._paths: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.info = Gauge("limbeck_model_info", "1 while served", (*_MODEL, "sha256", "runtime", "device"), **at)
        self.difference = Gauge(
            "limbeck_model_difference", "Largest probability difference from torch float32", _MODEL, **at
        )

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

    def forget(self, name: str, version: str) -> None:
        """Stop telling of a model that is no longer served."""
        for gauge in (self.waiting, self.workers, self.difference, self.info):
            gauge.remove_by_labels({"model": name, "version": version})
