"""Decodes the formats that libsndfile reads to the last sample: WAV, AIFF, FLAC, AU, CAF, W64, RF64, VOC and others.

Not those whose length it takes from a header that may be wrong (MPEG audio) or from the first of several links (Ogg).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np
import soundfile

from app.audio.containers import TOLERANCE, bytes_behind, missing_by_log, missing_bytes, unfilled_sizes
from app.audio.errors import TooLong
from app.audio.tracks import AudioFile, Note
from app.audio.views import FileView

_READ = 1 << 15  # values read at once, over all channels; a truncated file loses at most this much
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's frame count for a file that declares none, such as a FLAC written to a pipe
_LOGGED = ("AU", "W64", "RF64", "VOC", "SVX")  # formats whose truncation libsndfile reports only in its log
_BY_OTHERS = ("MP3", "MPEG", "OGG")  # formats that app.audio.ffmpeg and app.audio.ogg read
_MPEG = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")  # codecs inside other files, such as WAV
_FLOATS = ("FLOAT", "DOUBLE")
_OVER = 16.0  # a peak of floats beyond which they are integers as floats: no mix is 24 dB over full scale
_FULL_SCALES = (2.0**15, 2.0**23, 2.0**31)
_HEADROOM = 2.0  # by which integers as floats may exceed their full scale, as resampling and mixing make them


def open_with_sndfile(file: BinaryIO, filename: str, max_duration: float) -> AudioFile | None:
    """Opens a file with libsndfile; None if libsndfile can't, or is not to, read it. Raises TooLong."""
    patches = unfilled_sizes(file)
    view = FileView(file, 0, file.seek(0, io.SEEK_END), patches) if patches else file
    return open_view(view, file, filename, max_duration)


def open_view(
    view: BinaryIO | FileView,
    file: BinaryIO,
    filename: str,
    max_duration: float,
    excluded: tuple[str, ...] = _BY_OTHERS,
) -> AudioFile | None:
    """Opens `view`, which is `file` or a part of it, unless its format is excluded."""
    sound = _open(view)
    if sound is None:
        return None
    rate, kind = sound.samplerate, sound.format
    unknown = kind == "FLAC" and not 0 < sound.frames < _UNKNOWN_FRAMES  # of which FFmpeg finds the end
    if kind in excluded or sound.subtype in _MPEG or unknown:
        sound.close()
        return None
    declared = sound.frames if sound.frames < _UNKNOWN_FRAMES and kind != "OGG" else 0
    if rate > 0 and declared / rate > max_duration:
        sound.close()
        raise TooLong(filename, f"it is longer than the limit of {max_duration:g} s.")
    notes: list[Note] = []
    scale = 1.0
    if sound.subtype in _FLOATS:
        scale = _scale(sound)
        sound = _open(view) or sound  # from the beginning
        if scale != 1.0:
            notes.append(Note("samples-rescaled", f"floating-point samples were divided by {1 / scale:.0f}"))

    def blocks() -> Iterator[np.ndarray]:
        frames = max(1, _READ // sound.channels)
        # what follows a FLAC's declared samples may be a tag, which is no damage
        left = declared if kind == "FLAC" else None
        while left != 0:
            block = sound.read(frames if left is None else min(frames, left), dtype="float32", always_2d=True)
            if not len(block):
                break
            left = None if left is None else left - len(block)
            yield block
        if (behind := bytes_behind(cast(BinaryIO, view))) > TOLERANCE:
            notes.append(Note("more-follows", f"{behind:.3f} s of bytes follow the audio that the header declares"))

    def check_end(frames: int) -> str | None:
        if frames + TOLERANCE * rate < declared:
            return f"the file is truncated: {frames / rate:.3f} s of {declared / rate:.3f} s could be read."
        if missing := missing_bytes(file) or (kind in _LOGGED and missing_by_log(sound.extra_info)):
            return f"the file is truncated: {missing}; {frames / rate:.3f} s could be read."
        return None

    return AudioFile(rate, sound.channels, blocks(), check_end, sound.close, notes=notes, scale=scale)


class _SequentialFile(soundfile.SoundFile):
    """A file that is read from start to end without seeking.

    soundfile seeks to the current position after each read, which costs time and, in some formats, samples.
    """

    def seekable(self) -> bool:
        return False


def _open(file: BinaryIO | FileView) -> _SequentialFile | None:
    file.seek(0)
    # an unbuffered file has no position other than its descriptor's, so libsndfile may read the descriptor
    unbuffered = isinstance(file, io.FileIO)
    try:
        return _SequentialFile(file.fileno(), closefd=False) if unbuffered else _SequentialFile(file)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError):
        return None


def _scale(sound: soundfile.SoundFile) -> float:
    """The factor that brings floating-point samples to ±1: below 1 for integers as floats. Reads and closes `sound`."""
    peak = 0.0
    with contextlib.suppress(soundfile.LibsndfileError), sound:  # reading it again reports damage
        while len(block := sound.read(_READ, dtype="float32", always_2d=True)):
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
    if peak <= _OVER or not np.isfinite(peak):
        return 1.0
    return next((1 / scale for scale in _FULL_SCALES if peak <= scale * _HEADROOM), 1.0)
