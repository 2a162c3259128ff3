"""Long recordings through a real server: events across window borders, and an hour in bounded memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import processes
from benchmarks.common import SOUNDS, Server, encode, load, write_recording
from benchmarks.service import long_audio
from model.config import SAMPLE_RATE, FineLAPConfig, WindowConfig
from model.windows import plan_windows

pytestmark = pytest.mark.slow

LENGTH = 50.0  # seconds of the recordings with sounds across borders
MINUTES = 60
LIMIT = 300e6  # bytes that the server and its decoders may take above idle, whatever the length


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Server:
    return start_server()


@pytest.fixture(scope="module")
def windows(small_checkpoint: Path) -> WindowConfig:
    return FineLAPConfig.from_dict(json.loads((small_checkpoint / "config.json").read_text())).windows


def borders(windows: WindowConfig) -> list[float]:
    """Seconds at which one window's frames end and the next one's begin, in a recording of LENGTH."""
    plan = plan_windows(round(LENGTH * SAMPLE_RATE), windows)
    return [(w.first_frame + w.keep.start) * windows.frame_hop for w in plan[1:]]


def detect(server: Server, samples: np.ndarray, kind: str = "json") -> list[dict[str, Any]]:
    """Events of a dog's bark."""
    form = {"phrases": "dog barking", "format": kind}
    answer = server.post("/detect", data=form, files={"file": ("barks.wav", encode(samples))})
    assert answer.status_code == 200, answer.text
    if kind == "json":
        return list(answer.json()["phrases"][0]["events"])
    lines = [json.loads(line) for line in answer.text.splitlines()]
    streamed = [{k: line[k] for k in ("onset", "offset", "score")} for line in lines if line["type"] == "event"]
    assert lines[-1]["type"] == "end" and lines[-1]["phrases"][0]["events"] == streamed
    return streamed


def place(sound: np.ndarray, onsets: list[float]) -> np.ndarray:
    """LENGTH seconds of faint noise with the sound at each onset."""
    samples = (1e-3 * np.random.default_rng(0).standard_normal(round(LENGTH * SAMPLE_RATE))).astype(np.float32)
    for onset in onsets:
        start = round(onset * SAMPLE_RATE)
        samples[start : start + len(sound)] += sound
    return samples


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.65, 0.9])
@pytest.mark.parametrize("kind", ["json", "ndjson"])
def test_a_bark_across_any_border_is_one_event(server: Server, windows: WindowConfig, share: float, kind: str) -> None:
    """`share` of the bark lies before each border."""
    bark = load(next(iter(sorted(SOUNDS.glob("dog-barking-*")))))[: int(0.8 * SAMPLE_RATE)]
    length = len(bark) / SAMPLE_RATE
    onsets = [border - share * length for border in borders(windows)]
    assert len(onsets) >= 4
    events = detect(server, place(bark, onsets), kind)
    assert len(events) == len(onsets), events
    for onset, event in zip(onsets, events, strict=True):
        assert event["onset"] < onset + 0.5 * length < event["offset"], (onset, events)
        assert onset - 1.0 < event["onset"] and event["offset"] < onset + length + 1.0, (onset, events)


@pytest.fixture(scope="module")
def hour(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An hour as JSON and as ndjson: answers, times, memory; see benchmarks/service/long_audio.py."""
    folder = tmp_path_factory.mktemp("hour")
    for kind in ("json", "ndjson"):
        long_audio.detect(server, write_recording(folder / "warm up.flac", 30, seed=1), kind)
    file = write_recording(folder / "hour.flac", 60 * MINUTES, seed=2)
    before = processes.process_tree(server.process.pid)
    row = long_audio.measure(server, file, MINUTES, "flac")
    time.sleep(0.5)
    return row | {"processes": (len(before), len(processes.process_tree(server.process.pid)))}


def test_an_hour_takes_no_more_memory_than_a_minute(hour: dict[str, Any]) -> None:
    assert hour["json"]["status"] == hour["ndjson"]["status"] == 200, hour
    assert hour["over_idle_mb"] * 1e6 < LIMIT, hour
    before, after = hour["processes"]
    assert after <= before + 1


def test_events_come_while_the_hour_is_still_decoded(hour: dict[str, Any]) -> None:
    stream = hour["ndjson"]
    assert stream["decoding"] is True, stream
    assert stream["analysed_at_first_event_s"] < 60 * MINUTES / 10
    assert stream["first_event_s"] < stream["took_s"] / 2


def test_the_hour_has_the_same_events_both_ways(hour: dict[str, Any]) -> None:
    assert hour["events"] > 10
    assert hour["same_events"] is True
    assert hour["ndjson"]["stream_is_end"] is True


def test_events_are_alike_but_for_rounding() -> None:
    def answer(*events: tuple[float, float, float]) -> list[dict[str, Any]]:
        names = ("onset", "offset", "score")
        return [{"phrase": "a", "events": [dict(zip(names, one, strict=True)) for one in events]}]

    one = answer((1.0, 2.0, 0.7))
    assert long_audio.alike(one, answer((1.0, 2.16, 0.7004)))
    for other in ((1.0, 2.4, 0.7), (1.0, 2.0, 0.71)):
        assert not long_audio.alike(one, answer(other))
    assert not long_audio.alike(one, answer())
    assert not long_audio.alike(one, answer((1.0, 2.0, 0.7), (3.0, 4.0, 0.7)))
