"""Decoded 16 kHz mono audio of many items, from a cache on disk or from the files on demand."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import soundfile
import soxr

from model.config import SAMPLE_RATE
from training.data.manifests import Item


class UnreadableError(ValueError):
    """An item whose audio cannot be decoded: its `audio_id` and the `reason`."""

    def __init__(self, audio_id: str, reason: str) -> None:
        super().__init__(f"{audio_id}: {reason}")
        self.audio_id, self.reason = audio_id, reason


class _Entry(NamedTuple):
    """Position of a file's audio in the cache, and the file's size and modification time when it was decoded."""

    stamp: list[int]
    start: int
    stop: int


class AudioStore:
    """Decoded 16 kHz mono audio of many items in one memory-mapped int16 file.

    `failed` maps the id of each item that cannot be decoded to the reason; audio is never replaced by silence. Audio is
    only appended to `file`, and index entries are written after their audio is on disk, so that a killed writer or a
    full disk keeps finished work. Files whose size or modification time has changed are decoded again. Several
    processes can open the same store; one of them decodes.
    """

    COMMIT_SAMPLES = 32 << 20  # decoded between two writes of the index

    def __init__(
        self,
        file: Path,
        items: Sequence[Item],
        progress: bool = False,
        threads: int = 2,
        channel: int | None = None,
    ) -> None:
        """`channel` is the one to decode, or None for their mean; a store holds one kind only."""
        self.channel = channel
        self.file, self.index = file, file.with_suffix(".jsonl")
        file.parent.mkdir(parents=True, exist_ok=True)
        keys = [os.path.abspath(item.path) for item in items]
        stamps = {key: _stamp(key) for key in keys}
        reasons = {key: "no such file" for key, stamp in stamps.items() if stamp is None}
        with _locked(file.with_suffix(".lock")):
            known = self._read_index()
            absent = {k: s for k, s in stamps.items() if s and (k not in known or known[k].stamp != s)}
            if absent:
                reasons |= self._decode(absent, known, progress, max(threads, 1))
        self.failed = {i.audio_id: reasons[k] for k, i in zip(keys, items, strict=True) if k in reasons}
        usable = [(known[k], i) for k, i in zip(keys, items, strict=True) if k not in reasons]
        self.items = [item for _, item in usable]
        self.spans = [(entry.start, entry.stop) for entry, _ in usable]
        end = max((entry.stop for entry in known.values()), default=0)
        self.samples = np.memmap(file, np.int16, "r", shape=(end,)) if end else np.zeros(0, np.int16)

    def _read_index(self) -> dict[str, _Entry]:
        """Index entries by path. Truncates a torn end of either file, so that appending can continue."""
        known: dict[str, _Entry] = {}
        if not self.index.is_file():  # unlinked, not truncated: another process may have the old file mapped
            self.file.unlink(missing_ok=True)
            self.file.with_suffix(".json").unlink(missing_ok=True)  # index of an earlier version
            return known
        size = self.file.stat().st_size if self.file.is_file() else 0
        lines = self.index.read_bytes().splitlines(keepends=True)
        whole = end = 0
        for line in lines:
            try:
                row = json.loads(line)
                entry = _Entry(row["stamp"], row["start"], row["stop"])
                if not line.endswith(b"\n") or 2 * entry.stop > size:
                    break
                known[row["path"]] = entry
            except (ValueError, KeyError, TypeError):
                break
            whole, end = whole + len(line), max(end, entry.stop)
        if whole < sum(map(len, lines)):
            os.truncate(self.index, whole)
        if 2 * end < size:
            os.truncate(self.file, 2 * end)
        return known

    def _decode(
        self, absent: dict[str, list[int]], known: dict[str, _Entry], progress: bool, threads: int
    ) -> dict[str, str]:
        """Decodes and appends the `absent` paths and adds them to `known`; returns failures with their reasons.

        Raises OSError if the disk is full; finished work stays.
        """
        from tqdm import tqdm

        reasons: dict[str, str] = {}
        fresh: dict[str, _Entry] = {}
        paths = list(absent)
        at = end = self.file.stat().st_size // 2 if self.file.is_file() else 0
        try:
            with (
                tqdm(total=len(paths), desc="decode", disable=not progress, mininterval=2) as bar,
                self.file.open("ab", buffering=0) as audio,
                self.index.open("ab", buffering=0) as index,
                ThreadPoolExecutor(threads) as pool,
            ):
                for begin in range(0, len(paths), 4 * threads):  # bounds the decoded audio in memory
                    part = paths[begin : begin + 4 * threads]
                    for path, found in zip(part, pool.map(self._try_decode, part), strict=True):
                        if isinstance(found, str):
                            reasons[path] = found
                        else:
                            _write(audio, found.tobytes())
                            fresh[path] = _Entry(absent[path], at, at + len(found))
                            at += len(found)
                        bar.update()
                    if at - end >= self.COMMIT_SAMPLES or part[-1] == paths[-1]:
                        os.fsync(audio.fileno())
                        rows = [json.dumps({"path": path} | entry._asdict()) + "\n" for path, entry in fresh.items()]
                        _write(index, "".join(rows).encode())
                        os.fsync(index.fileno())
                        known |= fresh
                        end, fresh = at, {}
        except OSError as error:
            with contextlib.suppress(OSError):  # frees the space now; the next reader would otherwise
                os.truncate(self.file, 2 * end)
            what = f"cannot cache decoded audio ({error.strerror}); finished files stay cached"
            raise OSError(error.errno, what, str(self.file)) from error
        return reasons

    def _try_decode(self, path: str) -> np.ndarray | str:
        """(samples,) int16, or the reason for the failure."""
        try:
            return np.rint(decode(Path(path), channel=self.channel).clip(-1, 1) * 32767).astype(np.int16)
        except (OSError, RuntimeError, ValueError) as error:
            return str(error)

    def __len__(self) -> int:
        return len(self.items)

    def get(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """(samples,) float32 at 16 kHz, all or samples `start` to `stop`, peak at most 1."""
        low, high = self.spans[i]
        high = high if stop is None else min(high, low + stop)
        return self.samples[low + start : high].astype(np.float32) / 32767

    def length(self, i: int) -> int:
        """Samples at 16 kHz."""
        low, high = self.spans[i]
        return high - low

    def duration(self, i: int) -> float:
        """Seconds."""
        return self.length(i) / SAMPLE_RATE

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.get(i) for i in range(len(self)))


class AudioFiles:
    """The interface of AudioStore without a cache: reads headers up front and decodes audio on each `get`.

    For a valid header with corrupt audio, `get` raises UnreadableError.
    """

    def __init__(self, items: Sequence[Item], threads: int = 2, channel: int | None = None) -> None:
        self.channel = channel
        self.failed: dict[str, str] = {}
        self.items: list[Item] = []
        self.lengths: list[int] = []
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            for item, found in zip(items, pool.map(_header, [i.path for i in items]), strict=True):
                if isinstance(found, str):
                    self.failed[item.audio_id] = found
                else:
                    self.items.append(item)
                    self.lengths.append(found)

    def __len__(self) -> int:
        return len(self.items)

    def get(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """(samples,) float32 at 16 kHz, all or samples `start` to `stop`. Raises UnreadableError."""
        try:
            samples = decode(self.items[i].path, channel=self.channel)[start:stop]
        except (OSError, RuntimeError, ValueError) as error:
            raise UnreadableError(self.items[i].audio_id, str(error)) from error
        if not len(samples):
            raise UnreadableError(self.items[i].audio_id, "shorter than its header says")
        return samples

    def length(self, i: int) -> int:
        """Samples at 16 kHz, from the header."""
        return self.lengths[i]

    def duration(self, i: int) -> float:
        """Seconds."""
        return self.lengths[i] / SAMPLE_RATE


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _stamp(path: str) -> list[int] | None:
    """Size and modification time in ns; None if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _header(path: Path) -> int | str:
    """Samples at 16 kHz, or the reason for the failure."""
    if not path.is_file():
        return "no such file"
    try:
        info = soundfile.info(path)
    except (OSError, RuntimeError, ValueError) as error:
        return str(error)
    return max(round(info.frames * SAMPLE_RATE / info.samplerate), 1) if info.frames else "no samples"


def _write(file: IO[bytes], data: bytes) -> None:
    """Writes all of `data`; unbuffered files accept a part of it when the disk is nearly full."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def decode(
    path: Path, sample_rate: int = SAMPLE_RATE, *, seconds: float | None = None, channel: int | None = None
) -> np.ndarray:
    """A file, or its first `seconds`, as (samples,) float32 mono at `sample_rate`: one channel, or their mean.

    Raises OSError or RuntimeError if it cannot be decoded, and ValueError for empty audio or non-finite samples.
    """
    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        frames = -1 if seconds is None else round(seconds * rate)
        samples = file.read(frames, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1) if channel is None else np.ascontiguousarray(samples[:, channel])
    if not len(mono):
        raise ValueError("no samples")
    if not np.isfinite(mono).all():
        raise ValueError("non-finite samples")
    return mono if rate == sample_rate else soxr.resample(mono, rate, sample_rate)
