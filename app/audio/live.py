"""What live streams send without a container: samples, to mono float32 at 16 kHz, and single Opus packets, to Ogg.

Opus packets, as WebRTC and microcontrollers send them, are put into the Ogg stream that decoders read (RFC 7845). They
are decoded in processes of their own: here only a packet's length in samples is read from its first bytes (RFC 6716,
section 3.1).
"""

from __future__ import annotations

import struct

import numpy as np

from app.audio.downmix import Downmix
from app.audio.errors import InvalidSamples
from model.config import SAMPLE_RATE

STREAM = "stream"  # the name of a live stream in messages
_MAX_PEAK = 1e6  # |sample|
_TYPES: dict[str, np.dtype[np.int16] | np.dtype[np.float32]] = {
    "pcm_s16le": np.dtype("<i2"),
    "pcm_f32le": np.dtype("<f4"),
}
_S16_SCALE = np.float32(1 / 32768)

_OGG_RATE = 48_000  # Hz, of positions in Ogg
_MAX_PACKET = 61_295  # bytes: 48 frames of 1,275 and their lengths
_MAX_SAMPLES = 5_760  # 120 ms
_SILK, _HYBRID, _CELT = (480, 960, 1920, 2880), (480, 960), (120, 240, 480, 960)  # samples of a frame
_CONTAINERS = (b"OggS", b"\x1a\x45\xdf\xa3")  # the first bytes of Ogg and of WebM
_SERIAL = 1
_FIRST = 2  # the flag of the first page
_VENDOR = b"FineLAP"


class PcmDecoder:
    """Decodes one stream of interleaved samples, piece by piece."""

    def __init__(self, encoding: str, sample_rate: int, channels: int) -> None:
        """`encoding`: pcm_s16le or pcm_f32le. `sample_rate` in Hz."""
        self._encoding, self._type, self._channels = encoding, _TYPES[encoding], channels
        self._rate, self._read = sample_rate, 0
        self._downmix = Downmix(channels, sample_rate, live=True) if channels > 1 else None
        self._resampler = None
        if sample_rate != SAMPLE_RATE:
            import soxr  # not needed at start-up

            self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")

    def push(self, data: bytes) -> np.ndarray:
        """The samples (n,) of the next piece. Raises ValueError unless it has whole samples, and InvalidSamples."""
        size = self._type.itemsize * self._channels
        if len(data) % size:
            each = f"{self._type.itemsize} bytes" + (f" × {self._channels} channels" if self._channels > 1 else "")
            raise ValueError(
                f"A message of {len(data)} bytes does not hold whole samples of {self._encoding} ({each})."
            )
        samples = np.frombuffer(data, self._type).astype(np.float32)
        if self._type.kind == "i":
            samples *= _S16_SCALE
        elif len(samples):
            peak = float(np.abs(samples).max())
            if not peak <= _MAX_PEAK:
                at = f"in the message at {self._read / self._rate:.3f} s"
                value = f"samples as large as {peak:.3g}" if np.isfinite(peak) else "samples that are not finite"
                raise InvalidSamples(STREAM, f"it has {value} ({at}).")
        self._read += len(samples) // self._channels
        return self._resample(
            samples if self._downmix is None else self._downmix.push(samples.reshape(-1, self._channels))
        )

    def finish(self) -> np.ndarray:
        """The last samples (n,), which the downmix and the resampler still had."""
        last = np.empty(0, dtype=np.float32) if self._downmix is None else self._downmix.finish()
        return self._resample(last, last=True)

    def _resample(self, mono: np.ndarray, last: bool = False) -> np.ndarray:
        return mono if self._resampler is None else self._resampler.resample_chunk(mono, last=last)


# Opus


def is_container(beginning: bytes) -> bool:
    """Whether a stream that begins with these bytes, one or more, is Ogg or WebM: its messages are no packets then."""
    return any(beginning.startswith(magic) or magic.startswith(beginning) for magic in _CONTAINERS)


def packet_samples(packet: bytes) -> int:
    """The length of a packet in samples at 48 kHz. Raises ValueError for what is no packet."""
    if packet and len(packet) <= _MAX_PACKET:
        config, code = packet[0] >> 3, packet[0] & 3
        lengths = _SILK if config < 12 else _HYBRID if config < 16 else _CELT
        frames = (packet[1] & 63 if len(packet) > 1 else 0) if code == 3 else min(code, 1) + 1
        samples = frames * lengths[config % len(lengths)]
        if 0 < samples <= _MAX_SAMPLES:
            return samples
    raise ValueError(f"A message of {len(packet)} bytes is neither an Opus packet nor part of an Ogg or WebM stream.")


class OggOpusWriter:
    """Packets → the bytes of an Ogg stream, a page a packet, so that a decoder has each at once.

    The stream is of two channels, to which Opus decodes packets of one and of two.
    """

    def __init__(self) -> None:
        self._pages = self._position = 0

    def push(self, packet: bytes) -> bytes:
        """The pages of the next packet. Raises ValueError for what is no packet."""
        samples, head = packet_samples(packet), b""
        if not self._pages:
            about = b"OpusHead" + struct.pack("<BBHIhB", 1, 2, 0, _OGG_RATE, 0, 0)
            tags = b"OpusTags" + struct.pack("<I", len(_VENDOR)) + _VENDOR + struct.pack("<I", 0)
            head = self._page(about, _FIRST) + self._page(tags)
        self._position += samples
        return head + self._page(packet)

    def _page(self, packet: bytes, flags: int = 0) -> bytes:
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        head = struct.pack("<4sBBqIII", b"OggS", 0, flags, self._position, _SERIAL, self._pages, 0)
        page = head + bytes([len(lacing)]) + lacing + packet
        self._pages += 1
        return page[:22] + struct.pack("<I", _checksum(page)) + page[26:]


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C1_1DB7 if value >> 31 else 0)) & 0xFFFF_FFFF
        table.append(value)
    return table


_CRC = _table()


def _checksum(page: bytes) -> int:
    """The page's CRC, with zeros where it will stand."""
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFF_FFFF) ^ _CRC[value >> 24 ^ byte]
    return value
