"""Sound event detection in one recording: a file, or a clip of the library by its stored embeddings.

Knows engine and library; no requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from app.engine import Engine
from app.services import Services
from index.records import Clip
from model.detection import DetectionSettings, Event, find_events


@dataclass(frozen=True)
class Recording:
    """A recording in the embedding space: clip (D,), frames (T, D), seconds. `samples` (n,) at 16 kHz, if wanted."""

    filename: str
    duration: float
    frame_hop: float
    clip: np.ndarray
    frames: np.ndarray
    samples: np.ndarray | None


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


async def embed_file(services: Services, data: bytes, filename: str) -> Recording:
    """A file as a Recording. Raises what decoding and embedding raise."""
    services.engine.refuse_if_full()
    decoded = await services.decode(data, filename)
    embedded = await services.engine.embed_audio(decoded.samples)
    return Recording(filename, decoded.duration, embedded.frame_hop, embedded.clip, embedded.frames, decoded.samples)


async def recall_clip(services: Services, clip_id: str, *, with_samples: bool) -> Recording:
    """A clip of the library as a Recording, from its stored embeddings. Raises ClipNotFound."""
    catalog = services.catalog

    def recall() -> tuple[Clip, np.ndarray, np.ndarray, float]:
        frames, hop = catalog.frames(clip_id)
        return catalog.get(clip_id), catalog.clip_vector(clip_id), frames, hop

    clip, vector, frames, hop = await services.read(recall)
    samples = None
    if with_samples:
        data = await services.read(lambda: catalog.audio_path(clip_id).read_bytes())
        samples = (await services.decode(data, clip.filename)).samples
    return Recording(clip.filename, clip.duration, hop, vector, frames, samples)


async def detect_events(
    services: Services, recording: Recording, phrases: list[str], settings: DetectionSettings
) -> DetectionResult:
    """The events of each phrase in the recording."""
    texts = await services.engine.embed_texts(phrases)
    return await services.compute(score_events, services.engine, recording, phrases, texts, settings)


def score_events(
    engine: Engine, recording: Recording, phrases: list[str], texts: np.ndarray, settings: DetectionSettings
) -> DetectionResult:
    """The events of each phrase, whose embeddings are `texts` (P, D). Worth a thread for long recordings."""
    scores = engine.frame_score(recording.frames, texts)
    return DetectionResult(
        recording.filename,
        recording.duration,
        recording.frame_hop,
        phrases,
        engine.clip_score(recording.clip[None], texts)[0],
        scores,
        [find_events(track, settings, recording.frame_hop, recording.duration) for track in scores],
    )


def draw(recording: Recording, result: DetectionResult, threshold: float) -> bytes:
    """The result as a PNG; the recording needs its samples."""
    from app.peaks import envelope
    from app.plot import detection_png  # Matplotlib takes a second to import and most services never draw

    assert recording.samples is not None
    return detection_png(
        envelope(recording.samples),
        result.duration,
        result.frame_hop,
        result.phrases,
        result.scores,
        result.events,
        result.filename,
        [threshold] * len(result.phrases),
    )


def to_answer(result: DetectionResult, frames: bool) -> dict[str, Any]:
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
                "events": [
                    {"onset": round(e.onset, 3), "offset": round(e.offset, 3), "score": round(e.score, 6)}
                    for e in events
                ],
                "frame_scores": np.round(track.astype(np.float64), 6).tolist() if frames else None,
            }
            for phrase, clip_score, track, events in zip(
                result.phrases, result.clip_scores, result.scores, result.events, strict=True
            )
        ],
    }
