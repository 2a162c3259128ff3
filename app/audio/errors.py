"""What can be wrong with a sound file, as exceptions naming the file and the reason. Knows no HTTP and no decoder."""

from __future__ import annotations

MIN_DURATION = 0.05  # seconds; less holds hardly more than one 25 ms spectrum


class MediaError(Exception):
    """A file that cannot be used. The message names the file and the reason."""

    reason = "media"

    def __init__(self, filename: str, why: str) -> None:
        super().__init__(f"{filename}: {why}")
        self.filename, self.why = filename, why


class EmptyAudio(MediaError):
    """No bytes, or no samples."""

    reason = "empty"


class NotAudio(MediaError):
    """Nothing here can decode it."""

    reason = "not_audio"


class TruncatedAudio(MediaError):
    """The file breaks off, or only a part of it can be decoded.

    read: seconds that could be read before the break; None if that is not known.
    """

    reason = "truncated"

    def __init__(self, filename: str, why: str, read: float | None = None) -> None:
        super().__init__(filename, why)
        self.read = read


class TooShort(MediaError):
    """Fewer samples than can be embedded."""

    reason = "too_short"


class TooLong(MediaError):
    """Longer than the limit."""

    reason = "too_long"


class InvalidSamples(MediaError):
    """Samples that are no sound: NaN, infinite or absurdly large; or a sample rate out of range."""

    reason = "invalid_samples"


class DecoderFailed(MediaError):
    """The decoder itself crashed, ran out of memory, took too long or hung on this file."""

    reason = "decoder"


REASONS = tuple(kind.reason for kind in MediaError.__subclasses__())
