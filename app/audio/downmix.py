"""Mixes channels to mono: their mean, except where they cancel each other.

A miswired cable or a widened recording has a channel that is another one upside down, and the mean of both is silence.
Every half second of audio is looked at: where the mean has lost the channels' energy, channels that oppose the loudest
one are turned over first, and if the mean still cancels, the loudest channel is used alone. Live sound can't wait for
half a second to be complete: each of its short chunks is decided by the half second that ends with it.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 0.5  # seconds for which one set of weights is chosen
_LIVE_CHUNK = 0.05  # in live sound
_FADE = 0.01  # seconds from one set of weights to the next
_SUSPECT = 0.5  # share of the energy of a mean of unrelated channels below which channels may cancel
_CANCELS = 0.1  # share below which they do
_OPPOSED = -0.8  # correlation with the loudest channel from which a channel is upside down
_FLOOR = 1e-10  # mean square of a channel that can be heard at all (-100 dBFS)


class Downmix:
    """Blocks (n, channels) → blocks of mono (n,), in chunks of their own. `cancelled`: frames where channels cancel.

    live: return samples at most _LIVE_CHUNK late.
    """

    def __init__(self, channels: int, sample_rate: int, live: bool = False) -> None:
        self._mean = np.full(channels, 1 / channels, dtype=np.float32)
        self._weights = self._mean
        chunk = _LIVE_CHUNK if live else _CHUNK
        self._chunk, self._fade = max(1, int(chunk * sample_rate)), max(1, int(_FADE * sample_rate))
        self._past = np.empty((0, channels), dtype=np.float32)  # decides with the next chunk
        self._reach = int(_CHUNK * sample_rate) - self._chunk if live else 0  # frames of it
        self._waiting: list[np.ndarray] = []
        self._buffered = 0
        self.cancelled = 0

    def push(self, block: np.ndarray) -> np.ndarray:
        """The mono samples (n,) that are decided by now; none while a chunk is incomplete."""
        self._waiting.append(block)
        self._buffered += len(block)
        if self._buffered < self._chunk:
            return np.empty(0, dtype=np.float32)
        joined = np.concatenate(self._waiting) if len(self._waiting) > 1 else block
        whole = self._buffered - self._buffered % self._chunk
        self._waiting, self._buffered = [joined[whole:]], self._buffered - whole
        return np.concatenate([self._mix(joined[at : at + self._chunk]) for at in range(0, whole, self._chunk)])

    def finish(self) -> np.ndarray:
        """The rest (n,)."""
        rest, self._waiting = self._waiting, []
        return self._mix(np.concatenate(rest)) if self._buffered else np.empty(0, dtype=np.float32)

    def _mix(self, chunk: np.ndarray) -> np.ndarray:
        mono = chunk.mean(axis=1, dtype=np.float32)
        weights = self._choose(chunk, mono) if not self._reach else self._choose_live(chunk)
        before, self._weights = self._weights, weights
        if weights is not self._mean:
            self.cancelled += len(chunk)
            mono = chunk @ weights
        if before is not weights:
            n = min(self._fade, len(chunk))
            new = np.linspace(0, 1, n, dtype=np.float32)
            mono[:n] = mono[:n] * new + (chunk[:n] @ before) * (1 - new)
        return mono

    def _choose_live(self, chunk: np.ndarray) -> np.ndarray:
        """`_choose` for a chunk, by what it ends."""
        recent = np.concatenate([self._past, chunk])
        self._past = recent[-self._reach :]
        return self._choose(recent, recent.mean(axis=1, dtype=np.float32))

    def _choose(self, chunk: np.ndarray, mono: np.ndarray) -> np.ndarray:
        """The channels' weights (channels,) for a chunk."""
        channels = chunk.shape[1]
        power = np.einsum("nc,nc->c", chunk, chunk) / len(chunk)
        if not _FLOOR < power.max() < np.inf:
            return self._mean
        unrelated = float(power.sum()) / channels**2
        if float(mono @ mono) / len(mono) >= _SUSPECT * unrelated and not _has_offset(chunk, power):
            return self._mean
        free = chunk - chunk.mean(axis=0)  # an equal offset of all channels does not cancel
        covariance = free.T.astype(np.float64) @ free / len(free)
        spread = np.diag(covariance)
        expected = float(spread.sum()) / channels**2
        if spread.max() <= _FLOOR or covariance.mean() >= _SUSPECT * expected:
            return self._mean
        loudest = int(spread.argmax())
        kept = np.abs(self._weights).argmax()  # so that the polarity does not turn over from chunk to chunk
        if spread[kept] > 0.25 * spread[loudest]:
            loudest = int(kept)
        alike = covariance[loudest] / np.sqrt(np.maximum(spread * spread[loudest], 1e-30))
        signs = np.where(alike < _OPPOSED, -1.0, 1.0)
        if signs @ covariance @ signs / channels**2 < _CANCELS * expected:
            signs = np.zeros(channels)
            signs[loudest] = channels
        elif (signs > 0).all():
            return self._mean
        weights = (signs / channels).astype(np.float32)
        return self._weights if np.array_equal(weights, self._weights) else weights


def _has_offset(chunk: np.ndarray, power: np.ndarray) -> bool:
    """Whether a constant makes up much of the channels' power, so that it may hide what cancels."""
    return bool((np.square(chunk.mean(axis=0)) > 0.1 * power).any())
