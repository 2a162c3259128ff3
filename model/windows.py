"""Cuts recordings of any length into model windows and joins the windows' embeddings.

NumPy only. All windows of a recording lie on its frame grid, so the joined frames are evenly spaced. Neighbouring
windows overlap; each frame is taken from the window in which it lies farther from an edge. `plan_windows` and
`join_windows` are the rules for a whole recording; `WindowCutter` and `Joiner` apply them to one that is streamed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from model.config import WindowConfig


@dataclass(frozen=True)
class Window:
    """One window of a recording: the samples it reads, and which of its frames the joined track keeps."""

    start: int  # sample
    stop: int  # sample, exclusive
    first_frame: int  # index in the recording of this window's frame 0
    keep: slice  # of its own frames, those that go into the track


def frame_count(samples: int, windows: WindowConfig) -> int:
    """The number of frames of a recording of `samples` samples at the windows' sample rate; at least one."""
    return max(1, math.ceil(samples / windows.sample_rate / windows.frame_hop - 1e-6))


def window_samples(windows: WindowConfig) -> int:
    """The number of samples that a whole window reads, including the last mel frame's tail."""
    return windows.samples


def plan_windows(samples: int, windows: WindowConfig) -> list[Window]:
    """Plans the overlapping windows of `samples` samples; the last is moved back to end with the recording.

    Each frame of the recording is kept from exactly one window. The stride is a whole number of frame hops.
    """
    total, span = frame_count(samples, windows), window_samples(windows)
    if total <= windows.frames:
        return [Window(0, min(samples, span), 0, slice(0, total))]
    stride = windows.frames - windows.overlap_frames
    firsts = list(range(0, total - windows.frames, stride)) + [total - windows.frames]
    edges = [0] + [(a + windows.frames + b) // 2 for a, b in zip(firsts, firsts[1:], strict=False)] + [total]
    plan = []
    for first, low, high in zip(firsts, edges, edges[1:], strict=False):
        start = round(first * windows.frame_hop * windows.sample_rate)
        plan.append(Window(start, min(samples, start + span), first, slice(low - first, high - first)))
    return plan


def centred(samples: np.ndarray) -> np.ndarray:
    """A window's samples (n,) float32 minus their mean: a DC offset would be a step where padding begins."""
    return samples - samples.mean()


class WindowCutter:
    """Cuts a streamed recording into the windows of `plan_windows`, with their samples, `centred` if the model's are.

    Buffers about two windows of samples. A window is yielded once the position of the next one is known, because that
    decides which of its frames are kept.
    """

    def __init__(self, windows: WindowConfig) -> None:
        self._windows = windows
        self._stride = windows.frames - windows.overlap_frames
        # a window, what must follow it, and one pushed piece; moved once per window rather than copied at each push
        self._buffer = np.empty(3 * window_samples(windows) + windows.sample_rate, dtype=np.float32)
        self._held = 0  # samples in the buffer
        self._held_from = 0  # position in the recording of the first sample in the buffer
        self._yielded = 0  # windows

    @property
    def samples(self) -> int:
        """The number of samples received."""
        return self._held_from + self._held

    def push(self, samples: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
        """Takes samples (n,) float32 at the model's rate and yields the windows that are now final.

        Exhaust the iterator.
        """
        for at in range(0, len(samples), window_samples(self._windows)):
            piece = samples[at : at + window_samples(self._windows)]
            self._buffer[self._held : self._held + len(piece)] = piece
            self._held += len(piece)
            # the next regular window is followed by another one: whatever comes now does not change it
            while frame_count(self.samples, self._windows) > (self._yielded + 1) * self._stride + self._windows.frames:
                window = self._cut(self._regular(self._yielded * self._stride))
                self._forget(round(self._yielded * self._stride * self._windows.frame_hop * self._windows.sample_rate))
                yield window

    def finish(self) -> Iterator[tuple[Window, np.ndarray]]:
        """Yields the remaining windows of the ended recording; none if it had no samples."""
        if self.samples:
            for window in plan_windows(self.samples, self._windows)[self._yielded :]:
                yield self._cut(window)

    def _regular(self, first: int) -> Window:
        # the middle of the overlap with the next window
        high = (self._windows.frames + self._stride) // 2
        low = 0 if first == 0 else high - self._stride
        start = round(first * self._windows.frame_hop * self._windows.sample_rate)
        return Window(start, start + window_samples(self._windows), first, slice(low, high))

    def _cut(self, window: Window) -> tuple[Window, np.ndarray]:
        self._yielded += 1
        samples = self._buffer[window.start - self._held_from : window.stop - self._held_from]
        return window, centred(samples) if self._windows.centres else samples.copy()

    def _forget(self, before: int) -> None:
        """Drops the samples before the next window. The last window of a recording never begins earlier."""
        drop = before - self._held_from
        self._held -= drop
        self._buffer[: self._held] = self._buffer[drop : drop + self._held]
        self._held_from = before


class Joiner:
    """Joins the embeddings of a recording's windows, in order, into the recording's own; equal to `join_windows`."""

    def __init__(self, frame_share: float = 0.0) -> None:
        """`frame_share`: weight of the frames' mean direction in the clip embedding; see WindowConfig."""
        self._frame_share = frame_share
        self._first: np.ndarray | None = None
        self._windows = 0
        self._weighted: np.ndarray | float = 0.0
        self._frames: np.ndarray | float = 0.0

    def add(self, window: Window, clip: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Takes the next window with its clip (D,) and frames (T_w, D), unit length; returns the kept frames (t, D)."""
        kept = frames[window.keep]
        self._first = clip if self._first is None else self._first
        self._windows += 1
        self._weighted = self._weighted + len(kept) * clip.astype(np.float64)
        if self._frame_share:
            self._frames = self._frames + kept.sum(axis=0, dtype=np.float64)
        return kept

    def clip(self) -> np.ndarray:
        """The clip embedding (D,) float32, unit length, of the windows so far. Raises ValueError if there are none.

        It is the mean of the windows' clip embeddings weighted by the frames each contributes, normalised. If
        `frame_share` is not zero, that multiple of the frames' mean direction is added and the sum normalised.
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
    """Joins window embeddings into the recording's: clip (D,) and frames (T, D), float32; see `Joiner.clip`.

    `clips` is (W, D) and `frames[w]` is (T_w, D), both of unit length.
    """
    joiner = Joiner(frame_share)
    track = [joiner.add(*parts) for parts in zip(plan, clips, frames, strict=True)]
    return joiner.clip(), np.concatenate(track)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
