"""The latest sound of one source, by position, and which parts of it have been lost."""

from __future__ import annotations

import asyncio
import io
import wave
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

from app.listen.sources import Chunk, Format

LENGTH = 180.0  # seconds that are kept


class History:
    """The sound of one stretch: from a source's opening to its end. Positions are seconds from its beginning.

    start, end: of what is kept. began: time (Unix, seconds) of position 0. closed: whether more may follow.
    """

    def __init__(self, format: Format) -> None:
        self.format = format
        self.start = self.end = 0.0
        self.began = 0.0
        self.closed = False
        self._chunks: deque[bytes] = deque()
        self._size = self._dropped = 0  # bytes received, and of them no longer kept
        self._changed = asyncio.Event()

    def add(self, chunk: Chunk) -> None:
        """Takes the next samples."""
        if not self._size:
            self.began = chunk.arrived - self.format.seconds(len(chunk.data))
        self._chunks.append(chunk.data)
        self._size += len(chunk.data)
        while self.format.seconds(self._size - self._dropped) > LENGTH:
            self._dropped += len(self._chunks.popleft())
        self.start, self.end = self.format.seconds(self._dropped), self.format.seconds(self._size)
        self._changed.set()

    def close(self) -> None:
        """No more follows."""
        self.closed = True
        self._changed.set()

    async def changed(self) -> None:
        """Waits for more samples or the end."""
        self._changed.clear()
        if not self.closed:
            await self._changed.wait()

    def read(self, start: float, end: float) -> bytes:
        """The bytes from `start` to `end`, as far as they are kept."""
        first = max(self.format.size(max(0.0, start)) - self._dropped, 0)
        last = self.format.size(max(0.0, end)) - self._dropped
        parts, at = [], 0
        for chunk in self._chunks:
            if at + len(chunk) > first and at < last:
                parts.append(chunk[max(0, first - at) : max(0, last - at)])
            at += len(chunk)
        return b"".join(parts)

    def wav(self, start: float, end: float) -> bytes:
        """The sound from `start` to `end`, as far as it is kept, as a WAV file."""
        file = io.BytesIO()
        with wave.open(file, "wb") as sound:
            sound.setnchannels(self.format.channels)
            sound.setsampwidth(2)
            sound.setframerate(self.format.sample_rate)
            sound.writeframes(self.read(start, end))
        return file.getvalue()

    def time_at(self, position: float) -> str:
        """The time of a position, in ISO 8601 with milliseconds, UTC."""
        return (
            datetime.fromtimestamp(self.began + position, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )


@dataclass
class Heard:
    """An event of one stretch, as told last. Seconds in the stretch.

    connection: over which it was told last. kept: its clip has been stored.
    """

    uid: str
    phrase: str
    onset: float
    offset: float
    score: float
    open: bool
    connection: int
    retracted: bool = False
    kept: bool = False


class Record:
    """The latest events of one stretch, across the connections over which they were told."""

    def __init__(self, prefix: str) -> None:
        self._prefix, self._count = prefix, 0
        self._events: deque[Heard] = deque(maxlen=2000)
        self._by_id: dict[tuple[int, int], Heard] = {}

    def take(self, connection: int, base: float, message: dict[str, object]) -> tuple[Heard, bool] | None:
        """The event of a message and whether it was told as closed before; None if the message has nothing new.

        base: position of the connection's first sample. A connection that replays sound tells its events again.
        """
        onset, offset = base + float(message["onset"]), base + float(message["offset"])  # type: ignore[arg-type]
        phrase, key = str(message["phrase"]), (connection, int(message["id"]))  # type: ignore[call-overload]
        event = self._by_id.get(key) or (self._overlapping(phrase, onset, offset) if connection > 1 else None)
        opened, retracted = bool(message.get("open")), message["type"] == "retraction"
        if event is None:
            if retracted:
                return None
            self._count += 1
            event = Heard(f"{self._prefix}-{self._count}", phrase, onset, offset, 0.0, opened, connection)
            self._events.append(event)
            before = False
        else:
            before = not event.open
            same = abs(event.onset - onset) < 0.3 and abs(event.offset - offset) < 0.3
            if before and not retracted and event.connection != connection and (same or opened):
                self._remember(key, event)
                return None
        self._remember(key, event)
        event.onset, event.offset, event.score = onset, offset, float(message["score"])  # type: ignore[arg-type]
        event.open, event.retracted, event.connection = opened, retracted, connection
        return event, before

    def to_keep(self, until: float) -> list[Heard]:
        """The closed events without a clip that ended before `until`."""
        return [e for e in self._events if not (e.kept or e.open or e.retracted) and e.offset <= until]

    def _overlapping(self, phrase: str, onset: float, offset: float) -> Heard | None:
        near = (e for e in reversed(self._events) if e.phrase == phrase and not e.retracted)
        return next((e for e in near if min(e.offset, offset) - max(e.onset, onset) > 0), None)

    def _remember(self, key: tuple[int, int], event: Heard) -> None:
        self._by_id[key] = event
        if len(self._by_id) > 2000:
            self._by_id.pop(next(iter(self._by_id)))
