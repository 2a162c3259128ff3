"""Sound event detection in one recording: all events at its end, or each one as soon as it is final.

Detector and EventReporter are synchronous: frames in, scores, events and messages out. The functions before them open
the recording and move work to threads.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from app.audio.peaks import WaveformPeaks
from app.audio.spectrogram import WaveformPreview
from app.audio.tracks import Note, Track, describe_track
from app.errors import Invalid
from app.services.audio_source import AudioSource, EmbeddingStream, open_source, require_frames
from app.services.phrases import Phrases, resolve
from app.state import AppState
from model.config import SAMPLE_RATE
from model.detection import DetectionSettings, Event, EventStream, find_events

_PROGRESS_INTERVAL_S = 1.0  # between two progress messages
_OUTLINE_INTERVAL_S = 0.1  # between two outline messages, once nothing else is left to send
_INLINE_SCORES = 1 << 12  # scores per block up to which the event loop computes them itself

Encoding = Literal["float", "base64"]  # of frame scores: six decimals, or little-endian float32, phrase by phrase
Message = dict[str, Any]  # a line of the NDJSON stream, in plain JSON types


@dataclass(frozen=True)
class DetectionRequest:
    """Phrases to detect, each with the settings that turn its scores into events.

    own_thresholds: the request has no threshold, so that concepts have those that their users have set.
    """

    phrases: list[str]
    settings: list[DetectionSettings]
    own_thresholds: bool = False

    def __post_init__(self) -> None:
        if not self.phrases or len(self.phrases) != len(self.settings):
            raise ValueError(f"{len(self.phrases)} phrases and {len(self.settings)} settings")

    async def resolve(self, state: AppState) -> tuple[Phrases, DetectionRequest]:
        """The embedded phrases, and the request with the thresholds that were set for its concepts.

        Raises Invalid if a lower threshold is above one of these, and what `resolve` raises.
        """
        phrases = await resolve(state, self.phrases)
        if not self.own_thresholds:
            return phrases, self
        try:
            settings = [
                own if phrase.threshold is None else replace(own, threshold=phrase.threshold)
                for own, phrase in zip(self.settings, phrases.each, strict=True)
            ]
        except ValueError as error:
            raise Invalid(str(error)) from error
        return phrases, DetectionRequest(self.phrases, settings)


@dataclass(frozen=True)
class StreamOptions:
    """What a stream of messages includes besides events.

    frames: the scores of every frame. outline_step: seconds per column of waveform and spectrogram; None: neither.
    """

    frames: bool = False
    encoding: Encoding = "float"
    outline_step: float | None = None


@dataclass(frozen=True)
class DetectionResult:
    """The result for P phrases: clip scores (P,), frame scores (P, T) before smoothing, and events."""

    filename: str
    duration: float  # seconds
    frame_hop: float  # seconds
    phrases: list[str]
    clip_scores: np.ndarray
    scores: np.ndarray
    events: list[list[Event]]
    sample_rate: int = SAMPLE_RATE  # Hz, of the original
    track: Track = Track(0, 1)
    notes: Sequence[Note] = ()


async def detect(state: AppState, source: AudioSource, request: DetectionRequest) -> DetectionResult:
    """The events of each phrase in a whole recording."""
    require_frames(state.engine, "Detection")
    phrases, request = await request.resolve(state)
    async with open_source(state, source) as stream:
        return await _detect(state, stream, Detector(request, phrases))


async def detect_plot(state: AppState, source: AudioSource, request: DetectionRequest) -> bytes:
    """Scores and events of a whole recording as a PNG, with its waveform."""
    require_frames(state.engine, "Detection")
    phrases, request = await request.resolve(state)
    peaks = WaveformPeaks()
    async with open_source(state, source, sink=peaks) as stream:
        result = await _detect(state, stream, Detector(request, phrases))
        async for _ in stream.remaining_audio():
            pass
    return await state.compute(plot, result, peaks.levels(), request)


async def detect_stream(
    state: AppState, source: AudioSource, request: DetectionRequest, options: StreamOptions
) -> AsyncGenerator[Message, None]:
    """The messages of a running detection, see EventReporter. Raises what opening and reading the source raise."""
    require_frames(state.engine, "Detection")
    phrases, request = await request.resolve(state)
    preview = None if options.outline_step is None else WaveformPreview(options.outline_step)
    async with open_source(state, source, sink=preview) as stream:
        detector, reporter = Detector(request, phrases), EventReporter(request, stream, options, preview)
        yield reporter.start()
        async for frames in stream:
            for message in reporter.push(await _score(state, detector, frames)):
                yield message
        for message in reporter.finish():
            yield message
        last_sent = time.monotonic()
        async for _ in stream.remaining_audio():
            if time.monotonic() - last_sent > _OUTLINE_INTERVAL_S:
                last_sent = time.monotonic()
                for message in reporter.outline():
                    yield message
        for message in reporter.end(await state.compute(detector.finish, stream, reporter.events)):
            yield message


async def _detect(state: AppState, stream: EmbeddingStream, detector: Detector) -> DetectionResult:
    async for frames in stream:
        await _score(state, detector, frames)
    return await state.compute(detector.finish, stream)


async def _score(state: AppState, detector: Detector, frames: np.ndarray) -> np.ndarray:
    """Scores a block of frames: on a thread, unless switching costs more than the scores."""
    if len(frames) * len(detector.request.phrases) < _INLINE_SCORES:
        return detector.push(frames)
    return await state.compute(detector.push, frames)


class Detector:
    """Scores one recording's frames against P phrases, and finds the events."""

    def __init__(self, request: DetectionRequest, phrases: Phrases) -> None:
        self.request = request
        self._phrases = phrases
        self._scores: list[np.ndarray] = []

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Frames (t, D) → scores (P, t)."""
        scores = self._phrases.frame_score(frames)
        self._scores.append(scores)
        return scores

    def finish(self, stream: EmbeddingStream, events: list[list[Event]] | None = None) -> DetectionResult:
        """The result, after the last block. Finds the events in the scores unless they are already known."""
        scores = np.concatenate(self._scores, axis=1)
        if events is None:
            events = [
                find_events(track, settings, stream.frame_hop, stream.duration)
                for track, settings in zip(scores, self.request.settings, strict=True)
            ]
        clip_scores = self._phrases.clip_score(stream.embedding)
        return DetectionResult(
            stream.filename,
            stream.duration,
            stream.frame_hop,
            self.request.phrases,
            clip_scores,
            scores,
            events,
            stream.sample_rate,
            stream.track,
            stream.notes,
        )


class EventReporter:
    """Turns one recording's scores into messages: start, events as soon as they are final, progress, end.

    Depending on the options, also the scores of every frame, and the outline that `preview` makes of the audio.
    `events` holds those reported so far; at the end they are the events that `detect` finds.
    """

    def __init__(
        self,
        request: DetectionRequest,
        stream: EmbeddingStream,
        options: StreamOptions = StreamOptions(),
        preview: WaveformPreview | None = None,
    ) -> None:
        self._phrases, self._stream, self._options, self._preview = request.phrases, stream, options, preview
        self._tracks = [EventStream(settings, stream.frame_hop) for settings in request.settings]
        self.events: list[list[Event]] = [[] for _ in self._tracks]
        self._position = 0  # frames
        self._last_progress = time.monotonic()

    def start(self) -> Message:
        """The first message."""
        stream = self._stream
        message = {
            "type": "start",
            "filename": stream.filename,
            "frame_hop": stream.frame_hop,
            "sample_rate": stream.sample_rate,
            "channels": stream.channels,
            "track": describe_track(stream.track),
            "phrases": self._phrases,
        }
        return message if self._preview is None else message | {"outline": self._preview.header()}

    def push(self, scores: np.ndarray) -> list[Message]:
        """The messages that follow from the next scores (P, t)."""
        messages: list[Message] = []
        if self._options.frames:
            encoded = _encode_scores(scores, self._options.encoding)
            messages.append({"type": "frames", "first": self._position, "scores": encoded})
        self._position += scores.shape[1]
        messages += self.outline()
        messages += self._report([track.push(own) for track, own in zip(self._tracks, scores, strict=True)])
        if time.monotonic() - self._last_progress > _PROGRESS_INTERVAL_S:
            self._last_progress = time.monotonic()
            position = round(self._position * self._stream.frame_hop, 3)
            messages.append({"type": "progress", "position": position})
        return messages

    def outline(self) -> list[Message]:
        """The outline of the audio since the last outline message, if there is any."""
        line = None if self._preview is None else self._preview.take_line()
        return [] if line is None else [line]

    def finish(self) -> list[Message]:
        """The last events, after the last frames."""
        return self._report([track.finish(self._stream.duration) for track in self._tracks])

    def end(self, result: DetectionResult) -> list[Message]:
        """The rest of the outline and the end message, after the last audio."""
        if self._preview is not None:
            self._preview.finish()
        response = to_response(result, frames=False)
        for phrase in response["phrases"]:
            del phrase["frame_scores"]
        return [*self.outline(), {"type": "end"} | response]

    def _report(self, final: list[list[Event]]) -> list[Message]:
        """Event messages for each phrase's new events, in order of time."""
        for events, new in zip(self.events, final, strict=True):
            events += new
        messages = [
            {"type": "event", "phrase": phrase} | _encode_event(event)
            for phrase, new in zip(self._phrases, final, strict=True)
            for event in new
        ]
        return sorted(messages, key=lambda message: (message["onset"], message["offset"]))


def plot(result: DetectionResult, peaks: np.ndarray, request: DetectionRequest) -> bytes:
    """The result as a PNG, with the recording's waveform peaks (2, n)."""
    # importing Matplotlib takes a second, and most services never plot
    from app.export.plot import DetectionPlot, detection_png

    return detection_png(
        DetectionPlot(
            result.filename,
            result.duration,
            peaks,
            result.phrases,
            result.scores,
            result.frame_hop,
            result.events,
            [settings.threshold for settings in request.settings],
        )
    )


def to_response(result: DetectionResult, frames: bool, encoding: Encoding = "float") -> dict[str, Any]:
    """The result as the JSON response of POST /detect. `frames`: with the score of every frame, before smoothing."""
    return {
        "filename": result.filename,
        "duration": result.duration,
        "frame_hop": result.frame_hop,
        "sample_rate": result.sample_rate,
        "track": describe_track(result.track),
        "notes": [asdict(note) for note in result.notes],
        "phrases": [
            {
                "phrase": phrase,
                "clip_score": round(float(clip_score), 6),
                "max_score": round(float(scores.max()), 6),
                "events": [_encode_event(event) for event in events],
                "frame_scores": _encode_scores(scores, encoding) if frames else None,
            }
            for phrase, clip_score, scores, events in zip(
                result.phrases, result.clip_scores, result.scores, result.events, strict=True
            )
        ],
    }


def _encode_event(event: Event) -> dict[str, float]:
    return {"onset": round(event.onset, 3), "offset": round(event.offset, 3), "score": round(event.score, 6)}


def _encode_scores(scores: np.ndarray, encoding: Encoding) -> Any:
    """Scores of any shape as nested lists with six decimals, or as base64: exact, and half as long."""
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(scores, dtype="<f4").tobytes()).decode()
    return np.round(scores.astype(np.float64), 6).tolist()
