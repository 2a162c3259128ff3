"""Sound event detection in one recording, while it is still being heard or when it has ended.

Knows the engine and recordings as app.services.audio_source has them; no library, no requests.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from app.audio.spectrogram import Sketch
from app.inference.engine import Engine
from app.services.audio_source import Hearing
from model.detection import DetectionSettings, Event, EventStream, find_events

_PROGRESS_EVERY = 1.0  # seconds of ours between two lines that tell how far it is
_DRAWN_EVERY = 0.1  # seconds of ours between two lines of a picture that is all there is left to send
_ON_THREAD = 1 << 12  # scores at once from which scoring leaves the event loop

Compute = Callable[..., Awaitable[Any]]  # runs a function with its arguments where it does not block
Encoding = Literal["float", "base64"]  # of frame scores: six decimals, or float32 little-endian, phrase by phrase


@dataclass(frozen=True)
class Question:
    """What to listen for: phrases, each with the settings that turn its scores into events."""

    phrases: list[str]
    settings: list[DetectionSettings]

    def __post_init__(self) -> None:
        if not self.phrases or len(self.phrases) != len(self.settings):
            raise ValueError(f"{len(self.phrases)} phrases and {len(self.settings)} settings")


@dataclass(frozen=True)
class Drawing:
    """What is drawn beside a running detection: the `sketch` that is the hearing's pen.

    Where the frames are remembered nothing is decoded for them: then it is the sketch of a `sound`, which is read once
    all events are told.
    """

    sketch: Sketch
    sound: AsyncIterable[np.ndarray] | None = None


@dataclass(frozen=True)
class DetectionResult:
    """What was heard: for P phrases their clip scores (P,), frame scores (P, T) and events."""

    filename: str
    duration: float
    frame_hop: float
    phrases: list[str]
    clip_scores: np.ndarray
    scores: np.ndarray
    events: list[list[Event]]


class _Ear:
    """Frames in, scores kept; `texts` (P, D) are the phrases' embeddings."""

    def __init__(self, engine: Engine, question: Question, texts: np.ndarray) -> None:
        self._engine, self._question, self._texts = engine, question, texts
        self._parts: list[np.ndarray] = []

    def hear(self, frames: np.ndarray) -> np.ndarray:
        """Frames (t, D) → their scores (P, t)."""
        scores = self._engine.frame_score(frames, self._texts)
        self._parts.append(scores)
        return scores

    def result(self, hearing: Hearing, events: list[list[Event]] | None = None) -> DetectionResult:
        """All of it, when the hearing has ended; the events, if they are not known yet, from the whole track."""
        scores = np.concatenate(self._parts, axis=1)
        if events is None:
            events = [
                find_events(track, settings, hearing.frame_hop, hearing.duration)
                for track, settings in zip(scores, self._question.settings, strict=True)
            ]
        clip_scores = self._engine.clip_score(hearing.clip[None], self._texts)[0]
        return DetectionResult(
            hearing.filename, hearing.duration, hearing.frame_hop, self._question.phrases, clip_scores, scores, events
        )


async def detect_events(
    engine: Engine, hearing: Hearing, question: Question, texts: np.ndarray, compute: Compute
) -> DetectionResult:
    """The events of each phrase in the whole recording."""
    ear = _Ear(engine, question, texts)
    async for frames in hearing:
        await _hear(ear, frames, texts, compute)
    result: DetectionResult = await compute(ear.result, hearing)
    return result


async def follow_events(
    engine: Engine,
    hearing: Hearing,
    question: Question,
    texts: np.ndarray,
    compute: Compute,
    *,
    frames: bool,
    encoding: Encoding = "float",
    drawing: Drawing | None = None,
    on_result: Callable[[DetectionResult], None] | None = None,
) -> AsyncGenerator[dict[str, Any], None]:
    """The lines of a running detection, as plain JSON types; the last has everything that `detect_events` finds.

    start, then event lines, each as soon as nothing that follows can change it, progress lines about once a second,
    with `frames` also the scores of every frame, with a `drawing` its lines, and end. `on_result` gets the result
    itself just before the end.
    """
    ear = _Ear(engine, question, texts)
    streams = [EventStream(settings, hearing.frame_hop) for settings in question.settings]
    found: list[list[Event]] = [[] for _ in streams]

    def tell(certain: list[list[Event]]) -> list[dict[str, Any]]:
        for events, more in zip(found, certain, strict=True):
            events += more
        lines = [
            {"type": "event", "phrase": phrase} | _event(event)
            for phrase, events in zip(question.phrases, certain, strict=True)
            for event in events
        ]
        return sorted(lines, key=lambda line: (line["onset"], line["offset"]))

    yield {
        "type": "start",
        "filename": hearing.filename,
        "frame_hop": hearing.frame_hop,
        "sample_rate": hearing.sample_rate,
        "channels": hearing.channels,
        "phrases": question.phrases,
    } | ({} if drawing is None else {"outline": drawing.sketch.about()})
    heard, told = 0, time.monotonic()
    async for part in hearing:
        scores = await _hear(ear, part, texts, compute)
        if frames:
            yield {"type": "frames", "first": heard, "scores": _scores(scores, encoding)}
        heard += len(part)
        if drawing is not None and (drawn := drawing.sketch.line()):
            yield drawn
        for line in tell([stream.push(track) for stream, track in zip(streams, scores, strict=True)]):
            yield line
        if time.monotonic() - told > _PROGRESS_EVERY:
            told = time.monotonic()
            yield {"type": "progress", "position": round(heard * hearing.frame_hop, 3)}
    for line in tell([stream.finish(hearing.duration) for stream in streams]):
        yield line
    if drawing is not None:
        async for line in _finished(drawing):
            yield line
    result: DetectionResult = await compute(ear.result, hearing, found)
    if on_result is not None:
        on_result(result)
    answer = to_answer(result, frames=False)
    for phrase in answer["phrases"]:
        del phrase["frame_scores"]
    yield {"type": "end"} | answer


async def _finished(drawing: Drawing) -> AsyncGenerator[dict[str, Any], None]:
    """The lines of a drawing that are left when everything has been heard."""
    if drawing.sound is not None:
        told = time.monotonic()
        async for block in drawing.sound:
            drawing.sketch.push(block)
            if time.monotonic() - told > _DRAWN_EVERY:
                told = time.monotonic()
                if line := drawing.sketch.line():
                    yield line
    drawing.sketch.finish()
    if line := drawing.sketch.line():
        yield line


async def _hear(ear: _Ear, frames: np.ndarray, texts: np.ndarray, compute: Compute) -> np.ndarray:
    if len(frames) * len(texts) < _ON_THREAD:
        return ear.hear(frames)
    scores: np.ndarray = await compute(ear.hear, frames)
    return scores


def draw(result: DetectionResult, outline: np.ndarray, question: Question) -> bytes:
    """The result as a PNG, with the recording's outline (2, n)."""
    from app.export.plot import detection_png  # Matplotlib takes a second to import and most services never draw

    return detection_png(
        outline,
        result.duration,
        result.frame_hop,
        result.phrases,
        result.scores,
        result.events,
        result.filename,
        [settings.threshold for settings in question.settings],
    )


def to_answer(result: DetectionResult, frames: bool, encoding: Encoding = "float") -> dict[str, Any]:
    """The result as POST /detect answers it, in plain JSON types; `frames`: with every frame's score, unsmoothed."""
    return {
        "filename": result.filename,
        "duration": result.duration,
        "frame_hop": result.frame_hop,
        "phrases": [
            {
                "phrase": phrase,
                "clip_score": round(float(clip_score), 6),
                "max_score": round(float(track.max()), 6),
                "events": [_event(event) for event in events],
                "frame_scores": _scores(track, encoding) if frames else None,
            }
            for phrase, clip_score, track, events in zip(
                result.phrases, result.clip_scores, result.scores, result.events, strict=True
            )
        ],
    }


def _event(event: Event) -> dict[str, float]:
    return {"onset": round(event.onset, 3), "offset": round(event.offset, 3), "score": round(event.score, 6)}


def _scores(scores: np.ndarray, encoding: Encoding) -> Any:
    """Scores of any shape as nested lists of numbers with six decimals, or as text, exact and half as long."""
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(scores, dtype="<f4").tobytes()).decode()
    return np.round(scores.astype(np.float64), 6).tolist()
