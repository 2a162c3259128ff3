"""How a recording of any length becomes model windows, and how their embeddings become one track again.

NumPy only; knows no network. All windows of a recording lie on its frame grid, so that the joined frames have one
clock. Neighbouring windows overlap; each frame is taken from the window in which it lies farther from an edge.
`plan_windows` says it for a recording of known length; `WindowCutter` and `Joiner` do the same while it still comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from model.config import WindowConfig

_SAMPLE_RATE = 16_000
_MEL_TAIL = 240  # samples by which the last 25 ms mel frame reaches past its 10 ms step


@dataclass(frozen=True)
class Window:
    """One window of a recording: the samples it reads, and the part of its frames that the joined track keeps."""

    start: int  # sample
    stop: int  # sample, exclusive
    first_frame: int  # of the recording, where this window's frame 0 lies
    keep: slice  # its own frames that go into the track


def frame_count(samples: int, windows: WindowConfig) -> int:
    """Frames of a recording of `samples` samples at 16 kHz; at least one."""
    return max(1, math.ceil(samples / _SAMPLE_RATE / windows.frame_hop - 1e-6))


def window_samples(windows: WindowConfig) -> int:
    """Samples that a whole window reads (16 kHz), the last mel frame's tail included."""
    return windows.mel_frames * 160 + _MEL_TAIL


def plan_windows(samples: int, windows: WindowConfig) -> list[Window]:
    """Cuts `samples` samples (16 kHz) into overlapping windows; the last is moved back to end with the recording.

    Every frame of the recording is kept from exactly one window. The stride is a whole number of frame hops.
    """
    total, span = frame_count(samples, windows), window_samples(windows)
    if total <= windows.frames:
        return [Window(0, min(samples, span), 0, slice(0, total))]
    stride = windows.frames - windows.overlap_frames
    firsts = list(range(0, total - windows.frames, stride)) + [total - windows.frames]
    edges = [0] + [(a + windows.frames + b) // 2 for a, b in zip(firsts, firsts[1:], strict=False)] + [total]
    plan = []
    for first, low, high in zip(firsts, edges, edges[1:], strict=False):
        start = round(first * windows.frame_hop * _SAMPLE_RATE)
        plan.append(Window(start, min(samples, start + span), first, slice(low - first, high - first)))
    return plan


def centred(samples: np.ndarray) -> np.ndarray:
    """A window's samples (n,) float32 around their own mean: an offset would be a step where padding begins."""
    return samples - samples.mean()


class WindowCutter:
    """The windows of a recording that comes in pieces, with their samples: `plan_windows`' own, whatever the pieces.

    Each window is `centred`. Holds about two windows of samples. A window is given out when the next one's place is
    known, which decides what is kept of it.
    """

    def __init__(self, windows: WindowConfig) -> None:
        self._windows = windows
        self._stride = windows.frames - windows.overlap_frames
        # a window, what must follow it, and a piece of what is pushed; moved once a window, not copied at each push
        self._buffer = np.empty(3 * window_samples(windows) + _SAMPLE_RATE, dtype=np.float32)
        self._held = 0  # samples in the buffer
        self._held_from = 0  # sample of the recording at its beginning
        self._given = 0  # windows

    @property
    def samples(self) -> int:
        """Samples that came so far."""
        return self._held_from + self._held

    def push(self, samples: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
        """Takes samples (n,) float32 at 16 kHz; gives windows that are now certain. Read it to its end."""
        for at in range(0, len(samples), window_samples(self._windows)):
            piece = samples[at : at + window_samples(self._windows)]
            self._buffer[self._held : self._held + len(piece)] = piece
            self._held += len(piece)
            # the next regular window is followed by another one: whatever comes now does not change it
            while frame_count(self.samples, self._windows) > (self._given + 1) * self._stride + self._windows.frames:
                window = self._cut(self._regular(self._given * self._stride))
                self._forget(round(self._given * self._stride * self._windows.frame_hop * _SAMPLE_RATE))
                yield window

    def finish(self) -> Iterator[tuple[Window, np.ndarray]]:
        """The windows that are left when the recording has ended; without samples there are none."""
        if self.samples:
            for window in plan_windows(self.samples, self._windows)[self._given :]:
                yield self._cut(window)

    def _regular(self, first: int) -> Window:
        # the middle of what it shares with the window a stride later
        high = (self._windows.frames + self._stride) // 2
        low = 0 if first == 0 else high - self._stride
        start = round(first * self._windows.frame_hop * _SAMPLE_RATE)
        return Window(start, start + window_samples(self._windows), first, slice(low, high))

    def _cut(self, window: Window) -> tuple[Window, np.ndarray]:
        self._given += 1
        return window, centred(self._buffer[window.start - self._held_from : window.stop - self._held_from])

    def _forget(self, before: int) -> None:
        """Drops the samples before the next window; the last one of a recording never begins earlier either."""
        drop = before - self._held_from
        self._held -= drop
        self._buffer[: self._held] = self._buffer[drop : drop + self._held]
        self._held_from = before


class Joiner:
    """Embeddings of a recording's windows, in order → the recording's own; what `join_windows` does, bit by bit."""

    def __init__(self, frame_share: float = 0.0) -> None:
        """`frame_share`: how much of the frames' mean direction is in the clip embedding, see WindowConfig."""
        self._frame_share = frame_share
        self._first: np.ndarray | None = None
        self._windows = 0
        self._weighted: np.ndarray | float = 0.0
        self._frames: np.ndarray | float = 0.0

    def add(self, window: Window, clip: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """The next window with its clip (D,) and frames (T_w, D), of unit length → the frames it keeps, (t, D)."""
        kept = frames[window.keep]
        self._first = clip if self._first is None else self._first
        self._windows += 1
        self._weighted = self._weighted + len(kept) * clip.astype(np.float64)
        if self._frame_share:
            self._frames = self._frames + kept.sum(axis=0, dtype=np.float64)
        return kept

    def clip(self) -> np.ndarray:
        """The clip embedding (D,), float32, of the windows so far. Raises ValueError if there are none.

        The mean of the windows' embeddings weighted by the frames each contributes, brought back to unit length; with
        `frame_share` that much of the frames' mean direction is added, and the sum brought back to unit length.
        """
        if self._first is None:
            raise ValueError("a recording without windows has no embedding")
        clip = self._first if self._windows == 1 else _unit(np.asarray(self._weighted))
        if self._frame_share:
            clip = _unit(clip + self._frame_share * _unit(np.asarray(self._frames)))
        return clip.astype(np.float32)


def join_windows(
    plan: list[Window], clips: np.ndarray, frames: list[np.ndarray], frame_share: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Window embeddings → the recording's: clip (D,) and frames (T, D), float32; see `Joiner.clip`.

    `clips` is (W, D) and `frames[w]` (T_w, D), both of unit length.
    """
    joiner = Joiner(frame_share)
    track = [joiner.add(*parts) for parts in zip(plan, clips, frames, strict=True)]
    return joiner.clip(), np.concatenate(track)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
