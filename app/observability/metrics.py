"""The service's Prometheus metrics, in a registry of their own for each app.

Knows names, labels and buckets; the values come from whoever does the work.
"""

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
            "From the request's first byte to the answer's last.",
            ["endpoint"],
            buckets=_SLOW,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "finelap_stage_duration_seconds",
            "Time in a stage of the work.",
            ["stage"],
            buckets=_FAST,
            registry=registry,
        )
        self._queue_depth = Gauge("finelap_queue_depth", "Items that wait in a lane.", ["lane"], registry=registry)
        self._batch_size = Histogram(
            "finelap_batch_size",
            "Items in one batch.",
            ["lane"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.audio_seconds = Counter("finelap_audio_seconds", "Seconds of audio decoded.", registry=registry)
        self.decode_failures = Counter(
            "finelap_decode_failures", "Files that could not be used.", ["reason"], registry=registry
        )
        self.rejected = Counter(
            "finelap_rejected", "Requests refused to protect the service.", ["reason"], registry=registry
        )
        self._clips = Gauge("finelap_index_clips", "Clips in the library.", registry=registry)
        self._search_seconds = Histogram(
            "finelap_index_search_duration_seconds", "Vector searches in the library.", buckets=_FAST, registry=registry
        )
        self.model_info = Gauge(
            "finelap_model_info", "The model in use; always 1.", ["checkpoint", "device", "dtype"], registry=registry
        )
        self._gpu_memory = Gauge("finelap_gpu_memory_bytes", "GPU memory of this process.", ["kind"], registry=registry)
        self.ready = Gauge(
            "finelap_ready", "1 while a forward pass and the library work, as /health/ready says.", registry=registry
        )
        self._disk_free = Gauge(
            "finelap_disk_free_bytes", "Room left where the library is, for this process.", registry=registry
        )
        self._disk_size = Gauge("finelap_disk_size_bytes", "Size of the file system of the library.", registry=registry)
        ProcessCollector(registry=registry)  # process_*: memory, processor time, descriptors, start
        for stage in STAGES:
            self._stage_seconds.labels(stage)
        for lane in LANES:
            self._queue_depth.labels(lane)
            self._batch_size.labels(lane)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Adds one measurement of a stage."""
        self._stage_seconds.labels(stage).observe(seconds)

    @contextlib.contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Measures what happens inside as one stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.observe_stage(stage, time.perf_counter() - began)

    @contextlib.contextmanager
    def vector_search(self) -> Iterator[None]:
        """Measures what happens inside as a search in the library."""
        with self._search_seconds.time():
            yield

    def observe_batch(self, lane: str, report: BatchReport) -> None:
        """Takes a batcher's report."""
        self._batch_size.labels(lane).observe(report.size)
        self.observe_stage("infer", report.seconds)
        for waited in report.waited:
            self.observe_stage("queue", waited)

    def watch_lane(self, lane: str, depth: Callable[[], int]) -> None:
        """Reads a lane's depth whenever the metrics are asked for."""
        self._queue_depth.labels(lane).set_function(depth)

    def watch_clips(self, count: Callable[[], float]) -> None:
        """Reads the number of clips whenever the metrics are asked for."""
        self._clips.set_function(count)

    def watch_disk(self, folder: Path) -> None:
        """Reads the room on the file system of a folder whenever the metrics are asked for."""
        self._disk_free.set_function(lambda: _room(folder, "free"))
        self._disk_size.set_function(lambda: _room(folder, "total"))

    def expect(self, counter: Counter, labels: Iterable[str]) -> None:
        """Begins a counter's series at 0, so that the first event counts as an increase."""
        for label in labels:
            counter.labels(label)

    def watch_gpu(self, memory: Callable[[str], int], kinds: tuple[str, ...]) -> None:
        """Reads GPU memory by kind whenever the metrics are asked for."""
        for kind in kinds:
            self._gpu_memory.labels(kind).set_function(functools.partial(memory, kind))

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry)


def _room(folder: Path, what: str) -> float:
    """Bytes `free` for this process, or in `total`; unknown where the folder is not there."""
    try:
        return float(getattr(shutil.disk_usage(folder), what))
    except OSError:
        return math.nan
