"""The service's Prometheus metrics, in one registry per app."""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from app.inference.batcher import BatchReport

STAGES = ("decode", "resample", "queue", "infer", "post", "index")
LANES = ("audio", "text")
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class Metrics:
    """All metrics of one app."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "finelap_requests", "Requests by endpoint and outcome.", ["endpoint", "outcome"], registry=registry
        )
        self.request_seconds = Histogram(
            "finelap_request_duration_seconds",
            "Time from the first byte of the request to the last byte of the response.",
            ["endpoint"],
            buckets=_SLOW,
            registry=registry,
        )
        self.inflight = Gauge(
            "finelap_inflight_requests", "Requests in progress, except health checks and scrapes.", registry=registry
        )
        self._stage_seconds = Histogram(
            "finelap_stage_duration_seconds",
            "Time spent in a processing stage.",
            ["stage"],
            buckets=_FAST,
            registry=registry,
        )
        self._queue_depth = Gauge("finelap_queue_depth", "Items queued in a lane.", ["lane"], registry=registry)
        self._queue_seconds = Gauge(
            "finelap_queue_seconds", "Backlog of a lane, in seconds of sound.", ["lane"], registry=registry
        )
        self._batch_size = Histogram(
            "finelap_batch_size",
            "Items per batch.",
            ["lane"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.audio_seconds = Counter("finelap_audio_seconds", "Total seconds of decoded audio.", registry=registry)
        self.decode_failures = Counter(
            "finelap_decode_failures", "Files that could not be decoded, by reason.", ["reason"], registry=registry
        )
        self.rejected = Counter(
            "finelap_rejected", "Requests rejected to protect the service, by reason.", ["reason"], registry=registry
        )
        self._clips = Gauge("finelap_index_clips", "Clips in the library.", registry=registry)
        self._search_seconds = Histogram(
            "finelap_index_search_duration_seconds", "Duration of vector searches.", buckets=_FAST, registry=registry
        )
        self.streams = Gauge("finelap_streams", "Live streams that are open.", registry=registry)
        self.stream_lag = _stream_lag(registry)
        self.model_info = Gauge(
            "finelap_model_info", "The loaded model; always 1.", ["checkpoint", "device", "dtype"], registry=registry
        )
        self._add_machine()
        ProcessCollector(registry=registry)  # process_*: memory, CPU time, file descriptors, start time
        for stage in STAGES:
            self._stage_seconds.labels(stage)
        for lane in LANES:
            self._queue_depth.labels(lane)
            self._batch_size.labels(lane)
        self._queue_seconds.labels("audio")  # texts have no duration

    def _add_machine(self) -> None:
        registry = self.registry
        self._gpu_memory = Gauge(
            "finelap_gpu_memory_bytes", "GPU memory of this process, by kind.", ["kind"], registry=registry
        )
        self.ready = Gauge(
            "finelap_ready", "1 while /health/ready succeeds: the model and the library work.", registry=registry
        )
        self._disk_free = Gauge(
            "finelap_disk_free_bytes", "Free space on the library's file system, for this process.", registry=registry
        )
        self._disk_size = Gauge("finelap_disk_size_bytes", "Size of the library's file system.", registry=registry)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Adds one measurement of a stage."""
        self._stage_seconds.labels(stage).observe(seconds)

    @contextlib.contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Measures the duration of the context as a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.observe_stage(stage, time.perf_counter() - began)

    @contextlib.contextmanager
    def vector_search(self) -> Iterator[None]:
        """Measures the duration of the context as a vector search."""
        with self._search_seconds.time():
            yield

    def observe_batch(self, lane: str, report: BatchReport) -> None:
        """Records a batch report."""
        self._batch_size.labels(lane).observe(report.size)
        self.observe_stage("infer", report.seconds)
        for waited in report.waited:
            self.observe_stage("queue", waited)

    def watch_lane(self, lane: str, depth: Callable[[], int]) -> None:
        """Reports a lane's queue depth at each scrape."""
        self._queue_depth.labels(lane).set_function(depth)

    def watch_backlog(self, lane: str, seconds: Callable[[], float]) -> None:
        """Reports a lane's queued seconds of sound at each scrape."""
        self._queue_seconds.labels(lane).set_function(seconds)

    def watch_clips(self, count: Callable[[], float]) -> None:
        """Reports the number of clips at each scrape."""
        self._clips.set_function(count)

    def watch_disk(self, folder: Path) -> None:
        """Reports free space and size of a folder's file system at each scrape."""
        self._disk_free.set_function(lambda: _disk_space(folder, "free"))
        self._disk_size.set_function(lambda: _disk_space(folder, "total"))

    def expect(self, counter: Counter, labels: Iterable[str]) -> None:
        """Initialises a counter's series with 0, so that the first event counts as an increase."""
        for label in labels:
            counter.labels(label)

    def watch_gpu(self, memory: Callable[[str], int], kinds: tuple[str, ...]) -> None:
        """Reports GPU memory by kind at each scrape."""
        for kind in kinds:
            self._gpu_memory.labels(kind).set_function(functools.partial(memory, kind))

    def render(self) -> bytes:
        """Renders the Prometheus text format."""
        return generate_latest(self.registry)


def _stream_lag(registry: CollectorRegistry) -> Histogram:
    return Histogram(
        "finelap_stream_lag_seconds",
        "Time from the arrival of a live stream's sound to its scores.",
        buckets=(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30),
        registry=registry,
    )


def _disk_space(folder: Path, what: str) -> float:
    """Bytes `free` for this process, or in `total`; NaN if the folder does not exist."""
    try:
        return float(getattr(shutil.disk_usage(folder), what))
    except OSError:
        return math.nan
