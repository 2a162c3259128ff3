"""The files that excerpts are written to: WAV, whose every byte is known in advance, and FLAC and Ogg as streams."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import numpy as np

_GUID = bytes.fromhex("000000001000800000aa00389b71")  # of WAVE_FORMAT_EXTENSIBLE, after the format tag
_MASKS = {1: 0x4, 2: 0x3, 4: 0x33, 6: 0x3F, 8: 0x63F}  # loudspeakers by number of channels
_MAX_SIZE = 0xFFFF_FFFF  # bytes of a RIFF file; a longer one is RF64
_STREAMINFO = 42  # bytes of a FLAC file up to the end of its STREAMINFO block
_APPLICATION = 2  # the type of a FLAC block with an application's data

SampleFormat = tuple[str, int]  # int, float32 or float64, and its bits


class WavFile:
    """The layout of a WAV file (RF64 beyond 4 GiB), of `frames` frames that are written later.

    `fmt`: the format chunk to use instead of a new one; `chunks`: (kind, content) before the audio.
    """

    def __init__(
        self,
        rate: int,
        channels: int,
        sample_format: SampleFormat,
        frames: int,
        *,
        fmt: bytes | None = None,
        chunks: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._kind, self._bits = sample_format
        self.frame_bytes = channels * self._bits // 8
        self.data_bytes = frames * self.frame_bytes
        self._chunks = [(b"fmt ", fmt or _fmt(rate, channels, self._kind, self._bits)), *chunks]
        if self._kind != "int" and not fmt:
            self._chunks.insert(1, (b"fact", struct.pack("<I", min(frames, _MAX_SIZE))))
        body = b"".join(_chunk(kind, content) for kind, content in self._chunks)
        self.length = 12 + len(body) + 8 + self.data_bytes + self.data_bytes % 2
        if self.length - 8 <= _MAX_SIZE:
            self._head = struct.pack("<4sI4s", b"RIFF", self.length - 8, b"WAVE")
            data_size = self.data_bytes
        else:
            self.length += 36
            sizes = struct.pack("<QQQI", self.length - 8, self.data_bytes, frames, 0)
            self._head = struct.pack("<4sI4s", b"RF64", _MAX_SIZE, b"WAVE") + _chunk(b"ds64", sizes)
            data_size = _MAX_SIZE
        self._data = struct.pack("<4sI", b"data", data_size)
        self.header = self._head + body + self._data

    def pack(self, block: np.ndarray) -> bytes:
        """The bytes of samples (n, channels): int32 whose upper bits are the sample, or floats."""
        if self._kind != "int":
            return block.astype("<f4" if self._kind == "float32" else "<f8").tobytes()
        match self._bits:
            case 8:
                return ((block >> 24) + 128).astype(np.uint8).tobytes()
            case 16:
                return (block >> 16).astype("<i2").tobytes()
            case 24:
                return np.ascontiguousarray(block.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
        return block.astype("<i4").tobytes()

    def riff_blocks(self) -> list[bytes]:
        """Everything but the audio, chunk by chunk."""
        return [self._head, *(_chunk(kind, content) for kind, content in self._chunks), self._data]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(content)) + content + bytes(len(content) % 2)


def _fmt(rate: int, channels: int, kind: str, bits: int) -> bytes:
    """A format chunk; extensible, with loudspeakers, for more than two channels."""
    tag, frame = (1 if kind == "int" else 3), channels * bits // 8
    if channels <= 2:
        return struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits)
    plain = struct.pack("<HHIIHH", 0xFFFE, channels, rate, rate * frame, frame, bits)
    return plain + struct.pack("<HHIH", 22, bits, _MASKS.get(channels, 0), tag) + _GUID


class OggFile(io.RawIOBase):
    """Collects what an encoder writes, until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = self._end = 0

    def write(self, data: object, /) -> int:
        """Appends the data; what overwrites earlier bytes is dropped, for they may be on their way already."""
        piece = bytes(data)  # type: ignore[call-overload]
        new = piece[max(0, self._end - self._at) :] if self._at <= self._end else piece
        self._at += len(piece)
        if new:
            self._append(new)
            self._end = max(self._end, self._at)
        return len(piece)

    def _append(self, piece: bytes) -> None:
        self._parts.append(piece)

    def take(self) -> bytes:
        """The bytes written since the last call."""
        taken, self._parts = b"".join(self._parts), []
        return taken

    def read(self, size: int = -1, /) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


class FlacFile(OggFile):
    """As OggFile, with the number of frames in the header from the start, and `riff` blocks after it.

    An encoder notes the number when it is done, by overwriting the header.
    """

    def __init__(self, frames: int, riff: Sequence[bytes]) -> None:
        super().__init__()
        self._frames, self._riff = frames, riff
        self._head: bytes | None = b""

    def _append(self, piece: bytes) -> None:
        if self._head is not None:
            self._head += piece
            if len(self._head) < _STREAMINFO:
                return
            piece, self._head = self._complete(self._head), None
        super()._append(piece)

    def _complete(self, head: bytes) -> bytes:
        number = int.from_bytes(head[18:26], "big") >> 36 << 36 | min(self._frames, 2**36 - 1)
        head = head[:18] + number.to_bytes(8, "big") + head[26:]
        blocks = [bytes([_APPLICATION]) + (len(block) + 4).to_bytes(3, "big") + b"riff" + block for block in self._riff]
        return head[:_STREAMINFO] + b"".join(blocks) + head[_STREAMINFO:]
