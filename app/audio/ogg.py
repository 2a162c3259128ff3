"""Decodes Ogg files of one link or several: radio captures and joined recordings are chained (RFC 3533, section 4).

libsndfile decodes Vorbis, Opus and FLAC at their own sample rate, but reads one link, and leaves out what a gap in the
positions of pages stands for. So each link is opened on its own, and by FFmpeg unless it is one plain track.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, cast

import av.error
import numpy as np
import soxr

from app.audio import ffmpeg, sndfile
from app.audio.containers import missing_bytes, ogg_links
from app.audio.downmix import Downmix
from app.audio.errors import NotAudio
from app.audio.tracks import AudioFile, Note, choose_track
from app.audio.views import FileView


def is_ogg(file: BinaryIO) -> bool:
    """Whether a file begins as an Ogg does."""
    file.seek(0)
    return file.read(4) == b"OggS"


def open_ogg(file: BinaryIO, filename: str, max_duration: float, track: str | None = None) -> AudioFile:
    """Opens an Ogg file; links after the first are converted to its sample rate and channels.

    Raises NotAudio, TrackMissing.
    """
    starts = ogg_links(file)
    starts = starts if starts and starts[0] == 0 else [0]
    ends = [*starts[1:], file.seek(0, io.SEEK_END)]
    views = [FileView(file, start, end) for start, end in zip(starts, ends, strict=True)]
    first = _open_link(views[0], file, filename, max_duration, track)
    if len(views) == 1:
        return first
    opened = [first]

    def blocks() -> Iterator[np.ndarray]:
        yield from first.blocks
        for view in views[1:]:
            link = _open_link(view, file, filename, max_duration, track)
            opened.append(link)
            yield from _converted(link, first)
            link.close()
            first.notes.extend(note for note in link.notes if note.code not in {known.code for known in first.notes})
        broken = sum(missing_bytes(cast(BinaryIO, view)) is not None for view in views[:-1])
        if broken:
            links = "one link breaks off" if broken == 1 else f"{broken} links break off"
            first.notes.append(Note("link-breaks-off", f"{links} before the end of a page, whose sound is lost"))

    def close() -> None:
        for link in opened:
            link.close()

    def check_end(frames: int) -> str | None:
        if missing := missing_bytes(file):
            return f"the file is truncated: {missing}; {frames / first.sample_rate:.3f} s could be read."
        return None

    return AudioFile(first.sample_rate, first.channels, blocks(), check_end, close, first.track, first.notes)


def _open_link(view: FileView, file: BinaryIO, filename: str, max_duration: float, track: str | None) -> AudioFile:
    try:
        plain = ffmpeg.is_plain(view)
    except (NotAudio, av.error.FFmpegError, ValueError):
        plain = True  # damaged: libsndfile says how
    if plain:
        opened = sndfile.open_view(view, file, filename, max_duration, excluded=())
        if opened is not None:
            choose_track([opened.track], track, filename)
            return opened
    return ffmpeg.open_view(view, file, filename, max_duration, track)


def _converted(link: AudioFile, first: AudioFile) -> Iterator[np.ndarray]:
    """The link's blocks at the sample rate and with the number of channels of the first link."""
    resampler = mix = None
    if link.channels != first.channels and link.channels > 1:
        mix = Downmix(link.channels, link.sample_rate)
    if link.sample_rate != first.sample_rate:
        resampler = soxr.ResampleStream(link.sample_rate, first.sample_rate, first.channels, dtype="float32")
    for block in link.blocks:
        if mix is not None:
            block = mix.push(block)[:, None]
        block = block if link.channels == first.channels else np.repeat(block, first.channels, axis=1)
        yield block if resampler is None else _resampled(resampler, block)
    rest = np.empty(0, dtype=np.float32) if mix is None else mix.finish()
    last = np.repeat(rest[:, None], first.channels, axis=1)
    yield last if resampler is None else _resampled(resampler, last, last=True)


def _resampled(resampler: soxr.ResampleStream, block: np.ndarray, last: bool = False) -> np.ndarray:
    resampled = resampler.resample_chunk(np.ascontiguousarray(block), last=last)
    return resampled.reshape(len(resampled), -1)
