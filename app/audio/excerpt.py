"""Cuts an excerpt out of an audio file and writes it as WAV, FLAC or Ogg, piece by piece.

Sample rate, channels and sample format stay those of the file: samples are copied, and only fades, `normalize` and a
preview compute with them. The reader seeks, so the cost does not depend on the length of the file. Blocking and
in-process; `app.decoding.pool` isolates it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from app.audio.errors import InvalidSamples
from app.audio.excerpt_files import FlacFile, OggFile, WavFile
from app.audio.peaks import measure_loudness
from app.audio.sample_reader import SampleReader, open_reader

PEAK = 10 ** (-1 / 20)  # of a normalised excerpt: -1 dBFS
_PREVIEW_RATES = (8_000, 48_000)  # Hz that every browser plays
_PREROLL = 4_800  # output frames that a resampler which starts in the middle needs before the first one
_OGG_BLOCK = 4_096  # frames; libsndfile's Vorbis encoder overflows its stack on large blocks
_FLAC_CHANNELS = 8


@dataclass(frozen=True)
class ExcerptOptions:
    """What to cut, and how to write it.

    start, stop: frames of the file, start < stop ≤ total, its number of frames. format: wav, flac or ogg, or loudness
    for a JSON object with app.audio.peaks.Loudness of the whole file. fade: seconds of fade at each edge that cuts into
    the sound. normalize: scale the peak to -1 dBFS. preview: 16-bit WAV of one or
    two channels at a rate that every browser plays. range: the bytes of the written file that are wanted, as in a Range
    header: (first, None), (first, last) or (None, length of the tail); only for WAV.
    """

    start: int
    stop: int
    total: int
    format: str = "wav"
    fade: float = 0.0
    normalize: bool = False
    preview: bool = False
    range: tuple[int | None, int | None] | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ExcerptOptions:
        wanted = values.pop("range", None)
        return cls(**values, range=None if wanted is None else (wanted[0], wanted[1]))


@dataclass(frozen=True)
class ExcerptFile:
    """An excerpt while it is written. length: bytes of the whole file, None if unknown; first, last: the bytes that
    `pieces` has of it, None for all of them; an unsatisfiable range has no pieces and first > last."""

    length: int | None
    first: int | None
    last: int | None
    pieces: Iterator[bytes]


def open_excerpt(file: BinaryIO, options: ExcerptOptions) -> ExcerptFile:
    """Opens a seekable audio file and prepares the excerpt. Raises a MediaError, as iterating its pieces does."""
    reader = open_reader(file)
    if options.format == "loudness":
        measured = (json.dumps(asdict(measure_loudness(reader, options.total))).encode() for _ in range(1))
        return ExcerptFile(None, None, None, measured)
    source = _PreviewSource(reader, options) if options.preview else _Source(reader, options)
    if options.format == "wav":
        return _write_wav(source, options)
    if options.format == "flac" and reader.channels > _FLAC_CHANNELS:
        raise InvalidSamples(
            "", f"FLAC has at most {_FLAC_CHANNELS} channels, and the sound {reader.channels}: use wav."
        )
    return ExcerptFile(None, None, None, _encode(source, options))


def _write_wav(source: _Source, options: ExcerptOptions) -> ExcerptFile:
    chunks = () if options.preview else source.reader.chunks(options.start)
    fmt = None if options.preview else source.reader.fmt
    wav = WavFile(source.rate, source.channels, source.sample_format, source.frames, fmt=fmt, chunks=chunks)
    if options.range is None:
        return ExcerptFile(wav.length, None, None, _wav_bytes(wav, source, 0, wav.length))
    first, last = _resolve(options.range, wav.length)
    if first > last:
        return ExcerptFile(wav.length, first, last, iter(()))
    return ExcerptFile(wav.length, first, last, _wav_bytes(wav, source, first, last + 1))


def _resolve(wanted: tuple[int | None, int | None], length: int) -> tuple[int, int]:
    """(first, last) byte of a range of RFC 9110; first > last if it is not satisfiable."""
    first, last = wanted
    if first is None:
        return max(0, length - (last or 0)), length - 1
    return first, length - 1 if last is None else min(last, length - 1)


def _wav_bytes(wav: WavFile, source: _Source, first: int, stop: int) -> Iterator[bytes]:
    """Bytes first … stop of a WAV file: of its header, its samples and its padding."""
    if first < len(wav.header):
        yield wav.header[first:stop]
    begin, end = max(0, first - len(wav.header)), min(stop - len(wav.header), wav.data_bytes)
    if begin < end:
        frame, at = begin // wav.frame_bytes, begin // wav.frame_bytes * wav.frame_bytes
        for block in source.blocks(frame, -(-end // wav.frame_bytes)):
            piece = wav.pack(block)
            yield piece[max(0, begin - at) : end - at]
            at += len(piece)
    if stop > len(wav.header) + wav.data_bytes:  # chunks have an even length
        yield bytes(stop - max(first, len(wav.header) + wav.data_bytes))


def _encode(source: _Source, options: ExcerptOptions) -> Iterator[bytes]:
    """The excerpt as a FLAC or Ogg file, as its encoder gives it away."""
    flac = options.format == "flac"
    kind, bits = source.sample_format
    bits = 24 if kind != "int" or bits > 24 else bits
    # like `flac --keep-foreign-metadata`, with the header of the WAV file that the excerpt would be
    chunks = source.reader.chunks(options.start)
    wav = WavFile(source.rate, source.channels, ("int", bits), source.frames, chunks=chunks)
    sink = FlacFile(source.frames, wav.riff_blocks() if chunks else ()) if flac else OggFile()
    subtype = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24"}[bits] if flac else "VORBIS"
    try:
        encoder = soundfile.SoundFile(
            sink, "w", source.rate, source.channels, subtype, format="FLAC" if flac else "OGG"
        )
    except soundfile.LibsndfileError as error:
        why = f"{options.format} cannot hold {source.channels} channels at {source.rate} Hz: use wav."
        raise InvalidSamples("", why) from error
    with encoder:
        for name, text in source.reader.strings().items():
            setattr(encoder, name, text)
        for block in source.blocks(0, source.frames):
            if flac and kind != "int":
                block = _to_int(block.astype(np.float64), 24)
            for at in range(0, len(block), _OGG_BLOCK):
                encoder.write(block[at : at + _OGG_BLOCK])
            if piece := sink.take():
                yield piece
    yield sink.take()


class _Source:
    """The samples of an excerpt, with fades and gain: blocks (n, channels) of the reader's type."""

    def __init__(self, reader: SampleReader, options: ExcerptOptions) -> None:
        self.reader, self.rate, self.channels = reader, reader.rate, reader.channels
        self.sample_format = ("int", 24) if reader.lossy else (reader.kind, reader.bits)
        self._start, self.frames = options.start, options.stop - options.start
        fade = min(round(options.fade * reader.rate), self.frames // 2)
        self._fade_in = fade if options.start > 0 else 0
        self._fade_out = fade if options.stop < options.total else 0
        self._normalize = options.normalize
        self._gain: float | None = None

    def blocks(self, first: int, stop: int) -> Iterator[np.ndarray]:
        """Frames first … stop of the excerpt; silence where the file ends early."""
        if self._gain is None:
            self._gain = PEAK / peak if self._normalize and (peak := self._peak()) else 1.0
        at = first
        for block in self.reader.read(self._start + first, self._start + stop):
            yield self._shaped(block, at)
            at += len(block)
        while at < stop:
            silence = np.zeros((min(stop - at, 1 << 14), self.channels), self.reader.dtype)
            yield self._finished(silence)
            at += len(silence)

    def _peak(self) -> float:
        full = 2.0**31 if self.reader.kind == "int" else 1.0
        peaks = (
            max(abs(float(block.max(initial=0))), abs(float(block.min(initial=0))))
            for block in self.reader.read(self._start, self._start + self.frames)
        )
        return max(peaks, default=0.0) / full

    def _shaped(self, block: np.ndarray, at: int) -> np.ndarray:
        """A block that begins at frame `at`, with gain and fades; untouched where there is neither."""
        end, fade_out_from = at + len(block), self.frames - self._fade_out
        if self._gain == 1.0 and at >= self._fade_in and end <= fade_out_from:
            return self._finished(block)
        if self._gain == 1.0:  # only the frames of the fade change
            cut = self._fade_in if at < self._fade_in < end else fade_out_from if at < fade_out_from < end else end
            if cut < end:
                parts = [self._shaped(block[: cut - at], at), self._shaped(block[cut - at :], cut)]
                return np.concatenate(parts)
        frames = np.arange(at, end)
        gain = np.full(len(block), self._gain)
        if self._fade_in:
            gain *= _ramp(frames / self._fade_in)
        if self._fade_out:
            gain *= _ramp((self.frames - 1 - frames) / self._fade_out)
        scaled = block.astype(np.float64) * gain[:, None]
        if self.reader.kind != "int":
            return self._finished(scaled.astype(self.reader.dtype))
        return _to_int(scaled / 2.0**31, self.reader.bits)

    def _finished(self, block: np.ndarray) -> np.ndarray:
        """The block in the sample format that is written."""
        return _to_int(block.astype(np.float64), 24) if self.reader.lossy else block


class _PreviewSource(_Source):
    """The samples of a preview: 16 bits, one or two channels, 8 to 48 kHz."""

    def __init__(self, reader: SampleReader, options: ExcerptOptions) -> None:
        super().__init__(reader, options)
        low, high = _PREVIEW_RATES
        if not low <= reader.rate <= high:
            self.rate = 44_100 if reader.rate % 44_100 == 0 else high
        self.channels = min(reader.channels, 2)
        self.sample_format = ("int", 16)
        self._all, self.frames = self.frames, max(1, round(self.frames * self.rate / reader.rate))
        self._mix = _downmix(reader.channels)

    def blocks(self, first: int, stop: int) -> Iterator[np.ndarray]:
        """Frames first … stop of the preview as int32, whose upper 16 bits are the sample."""
        rate = self.reader.rate
        step = self.rate // math.gcd(self.rate, rate)  # output frames at which both rates have a frame
        begin = max(0, first - _PREROLL) // step * step if rate != self.rate else first
        source = begin * rate // self.rate
        at, resampler = begin, None
        if rate != self.rate:
            resampler = soxr.ResampleStream(rate, self.rate, self.channels, dtype="float32")
        for block, last in _marked(self.reader.read(self._start + source, self._start + self._all)):
            mixed = self._floats(block)
            if resampler is not None:
                mixed = resampler.resample_chunk(mixed, last=last).reshape(-1, self.channels)
            wanted = mixed[max(0, first - at) : max(0, stop - at)]
            at += len(mixed)
            if len(wanted):
                yield _to_int(wanted.astype(np.float64), 16)
            if at >= stop:
                return
        if (missing := stop - max(at, first)) > 0:
            yield np.zeros((missing, self.channels), np.int32)

    def _floats(self, block: np.ndarray) -> np.ndarray:
        scale = np.float32(2.0**-31) if self.reader.kind == "int" else np.float32(1.0)
        return np.ascontiguousarray((block.astype(np.float32) * scale) @ self._mix)


def _downmix(channels: int) -> np.ndarray:
    """(channels, 1 or 2): the coefficients of ITU-R BS.775 for 5.1 in the order of WAV files, without clipping.

    Of other layouts, odd channels go left and even ones right.
    """
    if channels <= 2:
        return np.eye(channels, dtype=np.float32)
    half = math.sqrt(0.5)
    if channels == 6:  # L, R, C, LFE, Ls, Rs
        mix = np.array([[1, 0], [0, 1], [half, half], [0, 0], [half, 0], [0, half]], dtype=np.float32)
    else:
        mix = np.array([[1 - n % 2, n % 2] for n in range(channels)], dtype=np.float32)
    return mix / mix.sum(axis=0).max()


def _marked(blocks: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Each block, and whether it is the last."""
    previous = next(blocks, None)
    if previous is None:
        return
    for block in blocks:
        yield previous, False
        previous = block
    yield previous, True


def _ramp(x: np.ndarray) -> np.ndarray:
    """A raised-cosine fade: 0 at x = 0, 1 from x = 1 on."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(x, 0.0, 1.0))


def _to_int(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples from -1 to 1 as int32 whose upper `bits` bits are the sample, rounded and clipped."""
    full = 2.0 ** (bits - 1)
    with np.errstate(invalid="ignore"):
        rounded = np.clip(np.nan_to_num(np.rint(samples * full)), -full, full - 1)
    return rounded.astype(np.int64).astype(np.int32) << (32 - bits)
