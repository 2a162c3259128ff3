"""The metrics of `finelap listen`, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server


class ListenMetrics:
    """All metrics of one process. Sources are few, so their names are labels."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.sources = Gauge("finelap_listen_sources", "Sources that are being read.", registry=registry)
        self.streams = Gauge("finelap_listen_streams", "Streams that are open at the service.", registry=registry)
        self.lag = Histogram(
            "finelap_listen_lag_seconds",
            "Time from the end of an event to its message.",
            ["source"],
            buckets=(0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 30, 60),
            registry=registry,
        )
        self.events = Counter("finelap_listen_events", "Events that have ended.", ["source"], registry=registry)
        self.reconnects = Counter(
            "finelap_listen_reconnects", "Attempts to open something again.", ["source", "side"], registry=registry
        )
        self.gap_seconds = Counter(
            "finelap_listen_gap_seconds", "Sound that was not heard.", ["source"], registry=registry
        )
        self.failures = Counter(
            "finelap_listen_delivery_failures", "Failed attempts to deliver.", ["kind"], registry=registry
        )
        self.waiting = Gauge(
            "finelap_listen_outbox_items", "Deliveries that wait on disk.", ["kind"], registry=registry
        )
        for kind in ("webhook", "clip"):
            self.failures.labels(kind)
        ProcessCollector(registry=registry)

    def serve(self, port: int, host: str) -> None:
        """Serves the metrics on a thread. Raises OSError."""
        start_http_server(port, host, self.registry)
