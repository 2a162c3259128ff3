"""Sound event detection in live sound: samples in as they arrive, messages out as soon as there is something to tell.

`LiveDetection` is one stream. Its windows share the engine's batches with all other callers, one or two at a time, so a
stream that falls behind gets fewer and longer windows rather than a longer queue, and while others wait for the model,
windows are shorter. Memory does not grow with a stream's length.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator

import numpy as np

from app.audio.live import STREAM
from app.errors import FramesUnsupported
from app.services.audio_source import require_frames
from app.services.detection import DetectionRequest, Message
from app.services.phrases import Phrases
from app.state import AppState
from model.config import SAMPLE_RATE
from model.detection import Event
from model.live.cutter import LiveCutter
from model.live.track import LiveEvent, LiveTrack, State
from model.windows import Joiner, Window, WindowCutter

_MAX_BACKLOG = 10.0  # seconds of sound that wait for the model before the sender has to
_MAX_SETTLING = 2  # whole windows that wait
_PIECE = SAMPLE_RATE  # samples taken at once
_PROGRESS_INTERVAL_S = 1.0

_Cut = tuple[Window, np.ndarray]


class LiveDetection:
    """One live stream. One task calls `feed` and then `end`, another reads `messages`."""

    def __init__(self, state: AppState, request: DetectionRequest, phrases: Phrases, frames: bool = False) -> None:
        """`frames`: also tell the score of every frame."""
        self._state, self._request, self._phrases, self._frames = state, request, phrases, frames
        engine, numbers = state.engine, itertools.count(1)
        self._hop, self._rate = engine.frame_hop, SAMPLE_RATE
        self._tracks = [LiveTrack(settings, self._hop, numbers) for settings in request.settings]
        self._quick, self._settled = LiveCutter(engine.windows), WindowCutter(engine.windows)
        self._joiner = Joiner(engine.windows.frame_share)
        self._settling: deque[_Cut] = deque()
        self._arrivals: deque[tuple[int, float]] = deque()  # samples received, and when
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._ended = self._flushed = False
        self._highest = np.zeros(len(self._tracks))
        self._last_progress = time.monotonic()

    @classmethod
    async def open(cls, state: AppState, request: DetectionRequest, frames: bool = False) -> LiveDetection:
        """Embeds the phrases. Raises FramesUnsupported, and what `resolve` raises."""
        require_frames(state.engine, "A live stream")
        if state.engine.sample_rate != SAMPLE_RATE:
            raise FramesUnsupported(f"Live streams need a model of {SAMPLE_RATE} Hz; {state.engine.name} has another.")
        phrases, request = await request.resolve(state)
        return cls(state, request, phrases, frames)

    async def feed(self, samples: np.ndarray) -> None:
        """Takes samples (n,) of mono float32 at 16 kHz; waits while the model is behind."""
        for at in range(0, len(samples), _PIECE):
            while self._quick.backlog > _MAX_BACKLOG or len(self._settling) > _MAX_SETTLING:
                self._room.clear()
                await self._room.wait()
            piece = samples[at : at + _PIECE]
            self._quick.push(piece)
            self._settling.extend(self._settled.push(piece))
            self._arrivals.append((self._settled.samples, time.monotonic()))
            self._state.metrics.audio_seconds.inc(len(piece) / SAMPLE_RATE)
            self._changed.set()

    def end(self) -> None:
        """No more sound follows: `messages` tells what is left and ends."""
        self._ended = True
        self._changed.set()

    def start(self, sample_rate: int, channels: int) -> Message:
        """The first message; `sample_rate` (Hz) and `channels` of the sound as it is sent."""
        self._rate = sample_rate
        return {
            "type": "start",
            "filename": STREAM,
            "frame_hop": self._hop,
            "sample_rate": sample_rate,
            "channels": channels,
            "track": None,
            "phrases": self._request.phrases,
        }

    async def messages(self) -> AsyncGenerator[Message, None]:
        """The messages after the first. Raises what the model raises."""
        while True:
            quick = None if self._ended else self._quick.take(cheap=self._state.engine.audio_waits)
            if self._ended and not self._flushed:
                self._flushed = True
                self._settling.extend(self._settled.finish())
            settled = self._settling.popleft() if self._settling else None
            if quick is None and settled is None:
                if self._ended:
                    break
                self._changed.clear()
                await self._changed.wait()
                continue
            self._room.set()
            for message in await self._advance(quick, settled):
                yield message
        for message in self._tell([track.finish(self.duration) for track in self._tracks]):
            yield message
        yield self._end_message()

    @property
    def duration(self) -> float:
        """Seconds of sound received."""
        return self._settled.samples / SAMPLE_RATE

    async def _advance(self, quick: _Cut | None, settled: _Cut | None) -> list[Message]:
        """Passes windows through the model, and tells what follows."""
        encode = self._state.engine.encode_live
        embedded = await asyncio.gather(*(encode(cut[1]) for cut in (quick, settled) if cut is not None))
        messages: list[Message] = []
        if quick is not None:
            window, (_, frames) = quick[0], embedded[0]
            self._state.metrics.stream_lag.observe(self._lag(window.stop))
            scores = self._score(frames[window.keep])
            if self._frames:
                first = window.first_frame + window.keep.start
                messages.append({"type": "frames", "first": first, "scores": np.round(scores, 6).tolist()})
            messages += self._tell([track.push_quick(own) for track, own in zip(self._tracks, scores, strict=True)])
        if settled is not None:
            clip, frames = embedded[-1]
            scores = self._score(self._joiner.add(settled[0], clip, frames))
            self._highest = np.maximum(self._highest, scores.max(axis=1))
            messages += self._tell([track.push_settled(own) for track, own in zip(self._tracks, scores, strict=True)])
        if time.monotonic() - self._last_progress >= _PROGRESS_INTERVAL_S and not self._ended:
            self._last_progress = time.monotonic()
            position = self._quick.frames * self._hop
            messages.append({"type": "progress", "position": round(position, 3)})
        return messages

    def _score(self, frames: np.ndarray) -> np.ndarray:
        """Frames (t, D) → scores (P, t)."""
        return self._phrases.frame_score(frames)

    def _lag(self, sample: int) -> float:
        """Seconds since the sound up to this sample arrived."""
        while len(self._arrivals) > 1 and self._arrivals[0][0] < sample:
            self._arrivals.popleft()
        return time.monotonic() - self._arrivals[0][1]

    def _tell(self, news: list[list[LiveEvent]]) -> list[Message]:
        """Messages for the news of each phrase, in order of time."""
        messages = [
            _message(phrase, each) for phrase, own in zip(self._request.phrases, news, strict=True) for each in own
        ]
        return sorted(messages, key=lambda message: (message["onset"], message["offset"]))

    def _end_message(self) -> Message:
        clip = np.zeros(len(self._tracks))
        if self.duration:
            clip = self._phrases.clip_score(self._joiner.clip())
        phrases = [
            {
                "phrase": phrase,
                "clip_score": round(float(score), 6),
                "max_score": round(float(highest), 6),
                "events": [_event(event) for event in track.recent],
                "count": track.count,
            }
            for phrase, score, highest, track in zip(
                self._request.phrases, clip, self._highest, self._tracks, strict=True
            )
        ]
        return {
            "type": "end",
            "filename": STREAM,
            "duration": round(self.duration, 6),
            "frame_hop": self._hop,
            "sample_rate": self._rate,
            "track": None,
            "notes": [],
            "phrases": phrases,
        }


def _message(phrase: str, news: LiveEvent) -> Message:
    event = {"phrase": phrase, "id": news.number, **_event(news.event)}
    if news.state is State.RETRACTED:
        return {"type": "retraction", **event}
    message = {"type": "event", **event, "open": news.state is State.OPEN}
    return message | {"revised": True} if news.revised else message


def _event(event: Event) -> dict[str, float]:
    return {"onset": round(event.onset, 3), "offset": round(event.offset, 3), "score": round(event.score, 6)}
