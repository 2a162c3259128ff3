"""Live events: told soon after they begin and end, and corrected once the model has heard what followed.

NumPy only. Two passes run over the same sound. The quick pass slides a window with the sound: model.live.cutter cuts
one every third of a second, and a frame counts as soon as half a second after it is known. The settled pass is that of
whole recordings (model.windows.WindowCutter); its frames come up to two windows later. `LiveTrack` joins the two: what
it has told at the end is what `model.detection.find_events` finds in the settled scores, within TOLERANCE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from model.detection import DetectionSettings, Event, EventStream

TOLERANCE = 0.2  # seconds by which an event told earlier may differ from the settled one without being told again
_MAX_UNSETTLED = 64  # events of a phrase that wait for the settled pass
_RECENT = 100  # settled events of a phrase that are kept

_EPS = 1e-6  # seconds


class State(Enum):
    """What a `LiveEvent` tells."""

    OPEN = "open"  # it has begun; its offset and score are those so far
    CLOSED = "closed"  # it has ended
    RETRACTED = "retracted"  # it is no event after all


@dataclass(frozen=True)
class LiveEvent:
    """News of an event, which replaces what was told before under the same number.

    revised: it was told as closed before, or only the settled pass found it.
    """

    number: int
    event: Event
    state: State
    revised: bool = False


class LiveTrack:
    """The events of one phrase, told as they happen. Method "threshold" only.

    Memory does not grow: at most _MAX_UNSETTLED events wait for the settled pass, and older ones stay as told.
    """

    def __init__(self, settings: DetectionSettings, frame_hop: float, numbers: Iterator[int]) -> None:
        """`frame_hop` in seconds. `numbers`: of new events."""
        if settings.method != "threshold":
            raise ValueError(f"the method {settings.method!r} needs the whole recording; a live stream has no end")
        self._settings, self._hop, self._numbers = settings, frame_hop, numbers
        self._quick = EventStream(settings, frame_hop, spare=0)
        self._settled = EventStream(settings, frame_hop)
        self._current: LiveEvent | None = None  # the quick pass may still change it
        self._unsettled: deque[LiveEvent] = deque()  # closed, and the settled pass has not come to them
        self.recent: deque[Event] = deque(maxlen=_RECENT)  # the last settled events
        self.count = 0  # settled events
        self._floor = 0.0  # seconds before which the quick pass has nothing more to say

    def push_quick(self, scores: np.ndarray) -> list[LiveEvent]:
        """Takes the next scores (t,) of the quick pass."""
        news: list[LiveEvent] = []
        for ended in self._quick.push(scores):
            news += self._end(ended)
        ongoing = self._quick.ongoing()
        event: Event | None = None
        if ongoing is not None:
            event = Event(max(ongoing[0] * self._hop, self._floor), ongoing[1] * self._hop, ongoing[2])
        if self._current is not None and (event is None or not _overlap(self._current.event, event)):
            news += self._drop_current()
        if event is not None and event.offset > event.onset + _EPS:
            news += self._follow(event)
        return news

    def push_settled(self, scores: np.ndarray) -> list[LiveEvent]:
        """Takes the next scores (t,) of the settled pass."""
        return self._settle(self._settled.push(scores), self._settled.settled * self._hop)

    def finish(self, duration: float) -> list[LiveEvent]:
        """Ends a stream of `duration` seconds: what differs from its settled events."""
        return self._settle(self._settled.finish(duration), np.inf)

    # The quick pass

    def _follow(self, event: Event) -> list[LiveEvent]:
        """Tells of the event that goes on: that it has begun, has ended for now, or goes on after all."""
        if event.offset - event.onset < self._settings.min_duration - _EPS:
            return []
        silence = self._quick.searched * self._hop - event.offset  # in which it could have gone on
        if silence > self._settings.max_gap + _EPS:
            return self._end(event, final=False)
        if self._current is None:
            self._current = LiveEvent(next(self._numbers), event, State.OPEN)
            return [self._current]
        reopened = self._current.state is State.CLOSED and event.offset > self._current.event.offset + _EPS
        if self._current.state is State.CLOSED and not reopened:
            return []
        self._current = replace(self._current, event=event, state=State.OPEN, revised=reopened or self._current.revised)
        return [self._current] if reopened else []

    def _end(self, event: Event, final: bool = True) -> list[LiveEvent]:
        """Tells that the current event, or one that has come and gone meanwhile, has ended."""
        event = replace(event, onset=max(event.onset, self._floor))
        if event.offset <= event.onset + _EPS:
            return []
        current = self._current
        if current is not None and not _overlap(current.event, event):
            return [*self._drop_current(), *self._end(event, final)]
        if current is None:
            closed = LiveEvent(next(self._numbers), event, State.CLOSED)
        elif current.state is State.CLOSED and _alike(current.event, event):
            closed = current  # told already
        else:
            closed = _revision(current, event)
        self._current = None if final else closed
        if final:
            self._keep(closed)
        return [] if closed is current else [closed]

    def _drop_current(self) -> list[LiveEvent]:
        """Ends an event that the quick pass no longer has, such as one that became too short."""
        current, self._current = self._current, None
        assert current is not None
        if current.state is State.CLOSED:
            self._keep(current)
            return []
        return [replace(current, state=State.RETRACTED)]

    def _keep(self, closed: LiveEvent) -> None:
        self._unsettled.append(closed)
        if len(self._unsettled) > _MAX_UNSETTLED:
            self._unsettled.popleft()

    # The settled pass

    def _settle(self, events: list[Event], settled: float) -> list[LiveEvent]:
        """Compares settled events, all that begin before `settled` seconds, with what has been told."""
        news: list[LiveEvent] = []
        self.recent.extend(events)
        self.count += len(events)
        self._floor = max([self._floor, *(event.offset for event in events), settled])
        for event in events:
            told = self._told(event)
            if told is None:
                news.append(LiveEvent(next(self._numbers), event, State.CLOSED, revised=True))
                continue
            if told is self._current:
                self._current = None
            else:
                self._unsettled.remove(told)
            if told.state is State.OPEN or not _alike(told.event, event):
                news.append(_revision(told, event))
        while self._unsettled and self._unsettled[0].event.offset <= settled + _EPS:
            news.append(replace(self._unsettled.popleft(), state=State.RETRACTED))
        if np.isinf(settled) and self._current is not None:
            news.append(replace(self._current, state=State.RETRACTED))
            self._current = None
        return news

    def _told(self, event: Event) -> LiveEvent | None:
        """What has been told of a settled event: that which overlaps it most."""
        told = [*self._unsettled, *([] if self._current is None else [self._current])]
        touching = [each for each in told if _overlap(each.event, event)]
        return max(touching, key=lambda each: _shared(each.event, event), default=None)


def _revision(told: LiveEvent, event: Event) -> LiveEvent:
    """News that an event has ended like this."""
    return LiveEvent(told.number, event, State.CLOSED, told.revised or told.state is State.CLOSED)


def _shared(one: Event, other: Event) -> float:
    """Seconds that two events share; negative if they are apart."""
    return min(one.offset, other.offset) - max(one.onset, other.onset)


def _overlap(one: Event, other: Event) -> bool:
    return _shared(one, other) > -TOLERANCE


def _alike(one: Event, other: Event) -> bool:
    return abs(one.onset - other.onset) <= TOLERANCE + _EPS and abs(one.offset - other.offset) <= TOLERANCE + _EPS
