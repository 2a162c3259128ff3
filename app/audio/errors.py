"""Errors of audio files, as exceptions with the file name and the reason."""

from __future__ import annotations

MIN_DURATION = 0.05  # seconds; a shorter clip hardly exceeds one 25 ms analysis window


class MediaError(Exception):
    """A file that cannot be used. The message gives the file name and the reason."""

    reason = "media"

    def __init__(self, filename: str, why: str) -> None:
        super().__init__(f"{filename}: {why}")
        self.filename, self.why = filename, why


class EmptyAudio(MediaError):
    """The file has no bytes or no samples."""

    reason = "empty"


class NotAudio(MediaError):
    """No decoder supports the file."""

    reason = "not_audio"


class TruncatedAudio(MediaError):
    """The file is truncated, or only a part of it can be decoded.

    read: seconds that could be decoded; None if unknown.
    """

    reason = "truncated"

    def __init__(self, filename: str, why: str, read: float | None = None) -> None:
        super().__init__(filename, why)
        self.read = read


class TooShort(MediaError):
    """The audio is too short to be embedded."""

    reason = "too_short"


class TooLong(MediaError):
    """The audio exceeds the duration limit."""

    reason = "too_long"


class InvalidSamples(MediaError):
    """Samples are NaN, infinite or far out of range, or the sample rate is out of range."""

    reason = "invalid_samples"


class TrackMissing(MediaError):
    """The file does not have the requested audio track."""

    reason = "track"


class DecoderFailed(MediaError):
    """The decoder crashed, ran out of memory, timed out or hung on this file."""

    reason = "decoder"


REASONS = tuple(kind.reason for kind in MediaError.__subclasses__())
